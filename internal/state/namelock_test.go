package state

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestANameIsLockedOnce(t *testing.T) {
	name := "test/" + t.TempDir()
	lock, err := LockName(t.Context(), name, "the test", time.Minute)
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
	time.AfterFunc(50*time.Millisecond, lock.Unlock)
	again, err := LockName(t.Context(), name, "the test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	again.Unlock()
	again.Unlock()
	(*NameLock)(nil).Unlock()
}

func TestALockIsHeldByTheProgramsThatWereStartedWithIt(t *testing.T) {
	name := "test/" + t.TempDir()
	lock, err := LockName(t.Context(), name, "the test", 0)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sleep", "100")
	c.ExtraFiles = []*os.File{lock.File()}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lock.Unlock()
	if _, err := LockName(t.Context(), name, "the test", 0); !errors.Is(err, ErrBusy) {
		t.Errorf("taken: %v", err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	again, err := LockName(t.Context(), name, "the test", 0)
	if err != nil {
		t.Error(err)
	}
	again.Unlock()
}
