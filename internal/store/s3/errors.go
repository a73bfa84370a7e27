package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/qbackup/qbackup/internal/store"
)

// classify turns an error of the client into a *store.Error. ctx is that of the
// attempt, whose cause tells a stall from an interruption.
func (s *Store) classify(ctx context.Context, op, key string, err error) error {
	if ctx.Err() != nil {
		if errors.Is(context.Cause(ctx), errStalled) {
			return store.Fail(op, key, store.ErrUnreachable, fmt.Errorf("%w for %v", errStalled, s.o.Stall), "")
		}
		return store.Fail(op, key, nil, ctx.Err(), "")
	}
	var placed *store.Error
	if errors.As(err, &placed) {
		return err
	}
	answer := minio.ToErrorResponse(err)
	if answer.Code == "" && answer.StatusCode == 0 {
		hint, class := s.noAnswer(err)
		return store.Fail(op, key, class, err, hint)
	}
	hint, class := classOf(answer)
	if hint == "" {
		hint = s.hint(op, class, answer)
	}
	if class == store.ErrNoStore {
		return s.noBucket(op, key, describe(answer))
	}
	return store.Fail(op, key, class, describe(answer), hint)
}

// describe shows the code besides the message, and keeps the answer for
// errors.As.
func describe(answer minio.ErrorResponse) error {
	return &response{answer}
}

type response struct{ answer minio.ErrorResponse }

func (r *response) Error() string {
	text := strings.TrimSpace(r.answer.Message)
	if text == "" {
		text = r.answer.Error()
	}
	if r.answer.StatusCode != 0 {
		return fmt.Sprintf("%s (%s, HTTP %d)", text, r.answer.Code, r.answer.StatusCode)
	}
	return fmt.Sprintf("%s (%s)", text, r.answer.Code)
}

func (r *response) Unwrap() error { return r.answer }

// cause digs the answer of the service out of an error of classify.
func cause(err error) error {
	var r *response
	if errors.As(err, &r) {
		return r.answer
	}
	return err
}

// classOf maps the error codes of S3 and of its implementations to classes. The
// codes are from Amazon's "List of error codes"; those with XMinio from MinIO.
func classOf(answer minio.ErrorResponse) (hint string, class error) {
	switch answer.Code {
	case "NoSuchKey", "NoSuchVersion":
		return "", store.ErrNotFound
	case "NoSuchBucket":
		return "", store.ErrNoStore
	case "PreconditionFailed":
		return "", store.ErrExists
	case "ConditionalRequestConflict", "OperationAborted", "IncompleteBody", "RequestTimeout", "InternalError":
		return "", store.ErrTransient
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "RequestLimitExceeded",
		"RequestThrottled", "TooManyRequests", "ServiceUnavailable", "Busy", "XMinioServerNotInitialized":
		return "", store.ErrBusy
	case "QuotaExceeded", "QuotaExceededException", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage",
		"StorageFull", "NoSpaceLeft":
		return "free space in the bucket or raise its quota", store.ErrFull
	case "BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch":
		return "the body was damaged on its way or in memory", store.ErrCorrupt
	case "InvalidRange":
		return "", store.ErrRange
	case "InvalidAccessKeyId", "InvalidTokenId", "InvalidClientTokenId", "UnrecognizedClientException", "InvalidToken", "SignatureDoesNotMatch",
		"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestTimeTooSkewed", "AccessDenied", "AllAccessDisabled",
		"AccountProblem", "InvalidObjectState", "UnauthorizedAccess", "XAdminUserNotFound", "XAdminNoSuchUser":
		return "", store.ErrDenied
	case "AuthorizationHeaderMalformed", "InvalidRegion", "IllegalLocationConstraintException", "PermanentRedirect":
		return regionHint(answer.Region), store.ErrInvalid
	case "NotImplemented":
		return "the service lacks a feature; try another checksum or no condition", store.ErrInvalid
	}
	if answer.StatusCode == http.StatusNotFound && !keyless(answer.Code) {
		// That a key is absent is a fact on which decisions rest. Something else
		// that was not found, by a code that nobody knows here, is none.
		return "this answer is not one that S3 gives for a missing object", store.ErrInvalid
	}
	return "", classOfStatus(answer.StatusCode)
}

// keyless tells codes that say no more than the status 404.
func keyless(code string) bool {
	return code == "" || code == "NotFound" || strings.HasPrefix(code, "404")
}

func classOfStatus(status int) error {
	switch status {
	case http.StatusNotFound:
		return store.ErrNotFound
	case http.StatusPreconditionFailed:
		return store.ErrExists
	case http.StatusUnauthorized, http.StatusForbidden:
		return store.ErrDenied
	case http.StatusRequestedRangeNotSatisfiable:
		return store.ErrRange
	case http.StatusInsufficientStorage:
		return store.ErrFull
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return store.ErrBusy
	case http.StatusConflict, http.StatusRequestTimeout, 499:
		return store.ErrTransient
	case http.StatusNotImplemented:
		return store.ErrInvalid
	}
	if status >= 500 {
		return store.ErrTransient
	}
	return nil
}

func regionHint(region string) string {
	if region == "" {
		return "set AWS_REGION to the region of the bucket"
	}
	return "the bucket is in region " + region + "; set AWS_REGION to it"
}

func (s *Store) noBucket(op, key string, err error) error {
	if errors.Is(err, store.ErrNotFound) {
		err = describe(minio.ErrorResponse{Code: "NoSuchBucket", Message: "the bucket does not exist", StatusCode: http.StatusNotFound})
	}
	return store.Fail(op, key, store.ErrNoStore, err,
		fmt.Sprintf("create bucket %q at %s, or correct its name", s.o.Bucket, s.o.Endpoint))
}

// rights names what a verb needs, in the words of AWS policies.
func rights(op string) string {
	switch op {
	case "put":
		return "s3:PutObject"
	case "list":
		return "s3:ListBucket"
	case "delete":
		return "s3:DeleteObject"
	}
	return "s3:GetObject"
}

// hint advises on wrong or weak credentials.
func (s *Store) hint(op string, class error, answer minio.ErrorResponse) string {
	if class != store.ErrDenied {
		return ""
	}
	from := "credentials from " + s.o.Credentials.Source
	switch answer.Code {
	case "InvalidAccessKeyId", "InvalidTokenId", "InvalidClientTokenId", "UnrecognizedClientException", "XAdminUserNotFound", "XAdminNoSuchUser":
		return "the service does not know the access key; " + from
	case "SignatureDoesNotMatch":
		return "the secret key does not belong to the access key; " + from
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken":
		return "the session token has expired or is wrong; " + from
	case "RequestTimeTooSkewed":
		return "set the clock of this machine"
	case "InvalidObjectState":
		return "the object is archived; restore it in the service first, and keep the repository out of archive classes"
	}
	return fmt.Sprintf("the credentials need %s on bucket %q; %s", rights(op), s.o.Bucket, from)
}

// noAnswer classifies errors that came without an answer of the service.
func (s *Store) noAnswer(err error) (hint string, class error) {
	var unknown *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var name *net.DNSError
	switch {
	case errors.As(err, &unknown):
		return "the certificate of " + s.o.Endpoint + " is not trusted; name its CA file in AWS_CA_BUNDLE", store.ErrInvalid
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return s.o.Endpoint + " does not speak TLS; write http:// instead of https://", store.ErrInvalid
	case errors.Is(err, errCredentials):
		return "", store.ErrDenied
	case errors.As(err, &name) && name.IsNotFound:
		return "no host has the name " + name.Name, store.ErrUnreachable
	}
	return "is " + s.o.Endpoint + " the right address, and is the service up?", store.ErrUnreachable
}
