package state

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestANameIsLockedOnce(t *testing.T) {
	name := "test/" + t.TempDir()
	unlock, err := LockName(t.Context(), name, "the test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockName(t.Context(), name, "the test", 0); !errors.Is(err, ErrBusy) {
		t.Errorf("taken: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := LockName(ctx, name, "the test", time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, unlock)
	again, err := LockName(t.Context(), name, "the test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	again()
	again()
}
