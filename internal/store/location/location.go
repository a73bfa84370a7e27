package location

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/qbackup/qbackup/internal/store"
)

// Location is the address of a repository. Exactly one of Path and Bucket is set.
type Location struct {
	Path string // folder, as written: relative ones stay relative

	Bucket string
	Prefix string // in the bucket; no slash at either end
	Host   string // HOST or HOST:PORT; empty: AWS, or what the environment names
	Secure bool   // https; of a Host only
}

// Parse reads PATH, file:PATH, s3://BUCKET[/PREFIX] and
// s3:http(s)://HOST[:PORT]/BUCKET[/PREFIX]. Its errors are store.ErrInvalid and
// do not repeat the text, which may hold a password by mistake.
func Parse(text string) (Location, error) {
	l, err := parse(text)
	if err != nil {
		return Location{}, store.Fail("open", "", store.ErrInvalid, fmt.Errorf("repository address: %w", err),
			"write a path, s3:https://HOST/BUCKET/PREFIX or s3://BUCKET/PREFIX")
	}
	return l, nil
}

func parse(text string) (Location, error) {
	if text == "" {
		return Location{}, errors.New("is empty")
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Location{}, errors.New("has a control character")
	}
	scheme, rest, ok := strings.Cut(text, ":")
	if !ok || strings.ContainsAny(scheme, "/.") {
		return Location{Path: text}, nil
	}
	switch scheme {
	case "file":
		return parseFile(rest)
	case "s3":
		return parseS3(rest)
	}
	return Location{}, fmt.Errorf("begins with the unknown scheme %q; write ./ before the name of a folder with a colon", scheme)
}

func parseFile(path string) (Location, error) {
	if host, ok := strings.CutPrefix(path, "//"); ok {
		if !strings.HasPrefix(host, "/") {
			return Location{}, errors.New("names a host; file: is for local folders")
		}
		path = host
	}
	if path == "" {
		return Location{}, errors.New("has nothing after its scheme")
	}
	return Location{Path: path}, nil
}

func parseS3(rest string) (Location, error) {
	var l Location
	if bucket, ok := strings.CutPrefix(rest, "//"); ok {
		if strings.ContainsAny(bucket, "@?#") {
			return l, errors.New("may hold only a bucket and a prefix; keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
		}
		return l.withBucket(bucket)
	}
	u, err := url.Parse(rest)
	switch {
	case err != nil:
		return l, errors.New("is no valid address")
	case u.Scheme != "http" && u.Scheme != "https":
		return l, errors.New("needs http:// or https:// and a host after s3:, or // and a bucket")
	case u.User != nil:
		return l, errors.New("holds a user name; keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	case u.Hostname() == "" || strings.ContainsAny(u.Host, "@ "):
		return l, errors.New("has no host")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery || strings.ContainsAny(rest, "#%"):
		return l, errors.New("may not have ?, # or % in it")
	}
	l.Host, l.Secure = u.Host, u.Scheme == "https"
	return l.withBucket(strings.TrimPrefix(u.Path, "/"))
}

func (l Location) withBucket(path string) (Location, error) {
	bucket, prefix, _ := strings.Cut(path, "/")
	prefix = strings.TrimSuffix(prefix, "/")
	if err := checkBucket(bucket); err != nil {
		return Location{}, err
	}
	if prefix != "" {
		for _, part := range strings.Split(prefix, "/") {
			if part == "" || part == "." || part == ".." {
				return Location{}, errors.New("has an empty or dotted part in its prefix")
			}
		}
	}
	l.Bucket, l.Prefix = bucket, prefix
	return l, nil
}

// checkBucket applies the rules of "Bucket naming rules" in Amazon's user guide
// that matter for building an address from it.
func checkBucket(name string) error {
	if len(name) < 3 || len(name) > 63 {
		return errors.New("needs a bucket name of 3 to 63 characters")
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return errors.New("has a bucket name with other characters than letters (a-z), digits, hyphens and dots")
		}
	}
	return nil
}

// String returns the address in a form that Parse reads back to the same value.
func (l Location) String() string {
	switch {
	case l.Bucket == "":
		if again, err := parse(l.Path); err != nil || again != l {
			if strings.HasPrefix(l.Path, "//") {
				return "file://" + l.Path
			}
			return "file:" + l.Path
		}
		return l.Path
	case l.Host == "":
		return strings.TrimSuffix("s3://"+l.Bucket+"/"+l.Prefix, "/")
	}
	scheme := "http"
	if l.Secure {
		scheme = "https"
	}
	return strings.TrimSuffix("s3:"+scheme+"://"+l.Host+"/"+l.Bucket+"/"+l.Prefix, "/")
}
