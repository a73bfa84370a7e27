package testtool_test

import (
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

func TestALibvirtdIsOfItsOwn(t *testing.T) {
	l := testtool.StartLibvirtd(t)
	defer l.Stop(t)
	if out := l.Virsh(t, "list", "--all", "--name"); out != "" {
		t.Errorf("it knows %q", out)
	}
	out, err := l.Try("dumpxml", "nobody")
	if err == nil || !strings.Contains(out, "nobody") {
		t.Errorf("%q, %v", out, err)
	}
	l.Restart(t)
	if out := l.Virsh(t, "version"); !strings.Contains(out, "QEMU") {
		t.Errorf("after a restart it says %q", out)
	}
}
