package s3

import (
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/store"
)

func TestAHostThatNobodyKnowsIsNamed(t *testing.T) {
	s := &Store{o: Options{Endpoint: "backup.invalid:1"}}
	err := s.classify(t.Context(), "get", "a", &url.Error{Op: "Get", URL: "http://backup.invalid:1/b/a", Err: &net.OpError{
		Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "backup.invalid", IsNotFound: true}}})
	if !errors.Is(err, store.ErrUnreachable) || !strings.Contains(err.Error(), "no host has the name backup.invalid") {
		t.Error(err)
	}
}
