package s3

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Credentials sign requests; they renew themselves where they expire. The zero
// value is none. Printing one shows its source, never a key.
type Credentials struct {
	Source   string // where they are from, for messages
	provider *credentials.Credentials
}

// String returns the source.
func (c Credentials) String() string { return c.Source }

// GoString keeps "%#v" from showing keys.
func (c Credentials) GoString() string { return "s3.Credentials{" + c.Source + "}" }

// StaticCredentials are the given keys; token may be empty.
func StaticCredentials(accessKey, secretKey, token string) Credentials {
	return Credentials{"the configuration", credentials.NewStaticV4(accessKey, secretKey, token)}
}

// errCredentials is the class of failures to obtain credentials.
var errCredentials = errors.New("no usable credentials")

// metadataTimeout bounds a request to a metadata service, so that a machine that
// has none does not hang.
const metadataTimeout = 5 * time.Second

// FindCredentials chooses where credentials come from, in the order of the AWS
// tools: environment variables, web identity, profile files, container, instance.
// The first source that is set up is taken, and when it fails, that is an error:
// going on to the next would use an identity that nobody asked for. It makes no
// request; web identity, container and instance do so when first used.
func FindCredentials(getenv func(string) string) (Credentials, error) {
	if getenv("AWS_ACCESS_KEY_ID") != "" {
		if getenv("AWS_SECRET_ACCESS_KEY") == "" {
			return Credentials{}, fmt.Errorf("%w: AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not", errCredentials)
		}
		keys := credentials.NewStaticV4(getenv("AWS_ACCESS_KEY_ID"), getenv("AWS_SECRET_ACCESS_KEY"), getenv("AWS_SESSION_TOKEN"))
		return Credentials{"the environment (AWS_ACCESS_KEY_ID)", keys}, nil
	}
	if file := getenv("AWS_WEB_IDENTITY_TOKEN_FILE"); file != "" {
		if getenv("AWS_ROLE_ARN") == "" {
			return Credentials{}, fmt.Errorf("%w: AWS_WEB_IDENTITY_TOKEN_FILE is set and AWS_ROLE_ARN is not", errCredentials)
		}
		return remote("web identity (AWS_WEB_IDENTITY_TOKEN_FILE)", getenv), nil
	}
	found, err := profileCredentials(getenv)
	if err != nil || found.provider != nil {
		return found, err
	}
	if getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") != "" || getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI") != "" {
		return remote("the container (AWS_CONTAINER_CREDENTIALS_*)", getenv), nil
	}
	if getenv("AWS_EC2_METADATA_DISABLED") == "true" {
		return Credentials{}, fmt.Errorf("%w: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE", errCredentials)
	}
	return remote("the instance metadata service, because nothing else is set up", getenv), nil
}

// remote are credentials that a service hands out. The library reads the same
// environment variables to see which.
func remote(source string, getenv func(string) string) Credentials {
	return Credentials{source, credentials.New(&tagged{&credentials.IAM{
		Client: &http.Client{Timeout: metadataTimeout},
		Region: getenv("AWS_REGION"),
	}})}
}

// tagged marks errors of a provider, which otherwise look like those of the
// service.
type tagged struct{ credentials.Provider }

// RetrieveWithCredContext implements credentials.Provider.
func (t *tagged) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	v, err := t.Provider.RetrieveWithCredContext(cc)
	if err != nil {
		return v, fmt.Errorf("%w: %w", errCredentials, err)
	}
	return v, nil
}

// profileCredentials reads the profile files. Without AWS_PROFILE, and without
// keys in the profile "default", it returns none.
func profileCredentials(getenv func(string) string) (Credentials, error) {
	p := readProfile(getenv)
	if !p.named && !p.usable() {
		return Credentials{}, p.err
	}
	if !p.usable() {
		return Credentials{}, fmt.Errorf("%w: profile %q has no keys in %s or %s", errCredentials, p.name, p.credentialsFile, p.configFile)
	}
	source := fmt.Sprintf("profile %q", p.name)
	if p.value("aws_access_key_id") != "" && p.value("aws_secret_access_key") != "" {
		keys := credentials.NewStaticV4(p.value("aws_access_key_id"), p.value("aws_secret_access_key"), p.value("aws_session_token"))
		return Credentials{source, keys}, nil
	}
	// The library runs credential_process and knows the caches of single sign-on.
	return Credentials{source, credentials.New(&tagged{&credentials.FileAWSCredentials{Profile: p.name}})}, nil
}
