package s3

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"github.com/qbackup/qbackup/internal/store"
)

// Options of Open. Endpoint, Bucket and Credentials must be set; the zero values
// of the others are the usual ones. Environment fills in what a user has set up.
type Options struct {
	Endpoint string // HOST or HOST:PORT
	Secure   bool   // https
	Bucket   string
	Prefix   string // before all keys, parted from them by a slash; may be empty

	Region      string // empty: us-east-1, which most services other than AWS accept
	Addressing  Addressing
	CAFile      string // PEM certificates to trust besides the system's
	Credentials Credentials

	DataClass     string // storage class of packs; empty: the bucket's
	MetadataClass string // storage class of all other objects; empty: the bucket's
	Encryption    Encryption
	Checksum      Checksum
	Unconditional bool // leave out If-None-Match, for services that refuse the header

	Stall       time.Duration // longest time without progress [2 min]
	Connections int           // connections kept open [128]
}

// Addressing is where the bucket's name goes in a request.
type Addressing uint8

const (
	Automatic Addressing = iota // by the host name: AWS in the host, others in the path
	PathStyle                   // https://host/bucket/key
	HostStyle                   // https://bucket.host/key
)

// Encryption asks the service to encrypt objects at rest. The zero value asks for
// nothing, which leaves it to the bucket.
type Encryption struct {
	Mode  EncryptionMode
	KeyID string // KMS only; empty: the bucket's default key
}

// EncryptionMode is the kind of server-side encryption.
type EncryptionMode uint8

const (
	BucketDefault EncryptionMode = iota
	SSES3                        // keys of the service, x-amz-server-side-encryption: AES256
	SSEKMS                       // keys of a key management service
)

// Checksum is how a PUT proves that its body arrived whole.
type Checksum uint8

const (
	CRC32C     Checksum = iota // header x-amz-checksum-crc32c
	NoChecksum                 // for services that refuse that header
)

const (
	defaultRegion      = "us-east-1"
	defaultStall       = 2 * time.Minute
	defaultConnections = 128
)

func (o *Options) fill() error {
	if o.Endpoint == "" || strings.ContainsAny(o.Endpoint, "/@ ") {
		return fmt.Errorf("endpoint %q is no HOST:PORT", o.Endpoint)
	}
	if o.Bucket == "" {
		return errors.New("no bucket")
	}
	if err := checkPrefix(o.Prefix); err != nil {
		return err
	}
	if o.Credentials.provider == nil {
		return errors.New("no credentials")
	}
	if o.Region == "" {
		o.Region = defaultRegion
	}
	if o.Stall <= 0 {
		o.Stall = defaultStall
	}
	if o.Connections <= 0 {
		o.Connections = defaultConnections
	}
	return nil
}

func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	for _, segment := range strings.Split(prefix, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return fmt.Errorf("prefix %q has an empty or dotted part", prefix)
		}
	}
	return nil
}

func (o *Options) encryption() (encrypt.ServerSide, error) {
	switch o.Encryption.Mode {
	case SSES3:
		return encrypt.NewSSE(), nil
	case SSEKMS:
		return encrypt.NewSSEKMS(o.Encryption.KeyID, nil)
	}
	return nil, nil
}

func (o *Options) lookup() minio.BucketLookupType {
	switch o.Addressing {
	case PathStyle:
		return minio.BucketLookupPath
	case HostStyle:
		return minio.BucketLookupDNS
	}
	return minio.BucketLookupAuto
}

func (o *Options) storageClass(c store.ObjectClass) string {
	if c == store.Data {
		return o.DataClass
	}
	return o.MetadataClass
}

// transport returns the HTTP transport: HTTP/1.1, which moves large bodies faster
// than streams of one HTTP/2 connection, with as many idle connections as there
// may be requests at once, so that none is closed only to be made again.
func (o *Options) transport() (*http.Transport, error) {
	t, err := minio.DefaultTransport(o.Secure)
	if err != nil {
		return nil, err
	}
	t.MaxIdleConns = o.Connections
	t.MaxIdleConnsPerHost = o.Connections
	if !o.Secure {
		return t, nil
	}
	t.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	if o.CAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read the CA file: %w", err)
	}
	pool := t.TLSClientConfig.RootCAs
	if pool == nil {
		if pool, err = x509.SystemCertPool(); err != nil {
			pool = x509.NewCertPool()
		}
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s has no certificate in PEM form", o.CAFile)
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}
