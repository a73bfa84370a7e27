package s3

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/qbackup/qbackup/internal/store"
)

// FromEnvironment fills what o leaves open from the variables and files of the
// AWS tools: credentials (FindCredentials), region (AWS_REGION,
// AWS_DEFAULT_REGION, the profile), CA file (AWS_CA_BUNDLE, the profile) and, when
// o names no endpoint, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile's
// endpoint_url, or else AWS itself. getenv is os.Getenv, or a test's.
func FromEnvironment(o Options, getenv func(string) string) (Options, error) {
	p := readProfile(getenv)
	first := func(values ...string) string {
		for _, v := range values {
			if v != "" {
				return v
			}
		}
		return ""
	}
	o.Region = first(o.Region, getenv("AWS_REGION"), getenv("AWS_DEFAULT_REGION"), p.value("region"))
	o.CAFile = first(o.CAFile, getenv("AWS_CA_BUNDLE"), p.value("ca_bundle"))
	if o.Endpoint == "" {
		address := first(getenv("AWS_ENDPOINT_URL_S3"), getenv("AWS_ENDPOINT_URL"), p.value("endpoint_url"), amazon(o.Region))
		var err error
		if o.Endpoint, o.Secure, err = parseEndpoint(address); err != nil {
			return o, store.Fail("open", "", store.ErrInvalid, err, "check AWS_ENDPOINT_URL")
		}
	}
	if o.Credentials.provider == nil {
		var err error
		if o.Credentials, err = FindCredentials(getenv); err != nil {
			return o, store.Fail("open", "", store.ErrDenied, err, "")
		}
	}
	return o, nil
}

// amazon is the endpoint of AWS; the client finds the region's own.
func amazon(region string) string {
	if strings.HasPrefix(region, "cn-") {
		return "https://s3." + region + ".amazonaws.com.cn"
	}
	return "https://s3.amazonaws.com"
}

func parseEndpoint(address string) (host string, secure bool, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", false, fmt.Errorf("endpoint is no address") // the text of err could show a password
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return "", false, fmt.Errorf("endpoint %s is not http(s)://HOST[:PORT]", u.Redacted())
	}
	return u.Host, u.Scheme == "https", nil
}
