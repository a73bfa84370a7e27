package virt

import (
	"fmt"
	"strings"

	"github.com/qbackup/qbackup/internal/ident"
)

// libvirt allows nearly every name for a domain, and a machine's name is a part of
// object keys. What a machine's name cannot have is written as its code: 'x', two
// hex digits and '_' for each byte, so that "Web 01" becomes "x57_ebx20_01". A name
// that is a machine's name already stays as it is, unless it looks like a code.
const codeLen = len("x57_")

const hexDigits = "0123456789abcdef"

// MachineName gives the machine's name for a domain. DomainName leads back.
func MachineName(domain string) (ident.MachineName, error) {
	var b strings.Builder
	for i := range len(domain) {
		if c := domain[i]; plain(c, b.Len() == 0) && !code(domain[i:]) {
			b.WriteByte(c)
		} else {
			b.WriteByte('x')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
			b.WriteByte('_')
		}
	}
	name, err := ident.ParseMachineName(b.String())
	if err != nil {
		return "", fmt.Errorf("domain %q has no machine name of its own, choose one with --machine: %w", domain, err)
	}
	return name, nil
}

// DomainName gives the domain that MachineName made this name of; false when it made
// it of none.
func DomainName(machine ident.MachineName) (string, bool) {
	var b strings.Builder
	for rest := string(machine); rest != ""; {
		if code(rest) {
			b.WriteByte(digit(rest[1])<<4 | digit(rest[2]))
			rest = rest[codeLen:]
		} else {
			b.WriteByte(rest[0])
			rest = rest[1:]
		}
	}
	back, err := MachineName(b.String())
	return b.String(), err == nil && back == machine
}

// plain tells whether a byte stands for itself in a machine's name.
func plain(c byte, first bool) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		return true
	case c == '.', c == '_', c == '-':
		return !first
	}
	return false
}

// code tells whether s begins with the code of a byte.
func code(s string) bool {
	return len(s) >= codeLen && s[0] == 'x' && isHex(s[1]) && isHex(s[2]) && s[3] == '_'
}

func isHex(c byte) bool { return strings.IndexByte(hexDigits, c) >= 0 }

func digit(c byte) byte { return byte(strings.IndexByte(hexDigits, c)) }
