package virt

import (
	"errors"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/state"
)

func TestACommandThatOutlivesItsRunHasTheDomain(t *testing.T) {
	uuid := ident.RunID{1}.String()
	m := &Machine{virsh: script(t, `sleep 0.5 >/dev/null 2>&1 &`)} // as one that its run has not waited for
	if err := m.lock(t.Context(), uuid); err != nil {
		t.Fatal(err)
	}
	if _, err := m.virsh.do(t.Context(), []string{"backup-begin"}); err != nil {
		t.Fatal(err)
	}
	m.unlock()
	if _, err := state.LockName(t.Context(), "libvirt/"+uuid, "the test", 0); !errors.Is(err, state.ErrBusy) {
		t.Errorf("while the command goes on: %v", err)
	}
	other := &Machine{}
	if err := other.lock(t.Context(), uuid); err != nil {
		t.Error(err)
	}
	other.unlock()
	other.unlock()
}
