package qmp

import (
	"errors"
	"fmt"
)

// The classes of errors of this package.
var (
	// ErrNobody: there is no socket, or nobody listens at it: the machine is off.
	ErrNobody = errors.New("nobody listens there")
	// ErrTaken: the socket is there, and QEMU does not greet: it serves another
	// client, or hangs.
	ErrTaken = errors.New("the monitor is taken")
	// ErrLost: the connection ended, or was closed.
	ErrLost = errors.New("connection lost")
	// ErrProtocol: what came is not what the protocol says.
	ErrProtocol = errors.New("not the protocol")
	// ErrSilent: no reply came in time. The command may still be executed.
	ErrSilent = errors.New("no answer in time")
	// ErrAgent: the agent in the guest does not answer.
	ErrAgent = errors.New("the guest agent does not answer")
)

// The classes that QEMU gives its errors. Most are ClassGeneric.
const (
	ClassGeneric         = "GenericError"
	ClassCommandNotFound = "CommandNotFound" // the guest agent says it of commands that are switched off, too
	ClassDeviceNotFound  = "DeviceNotFound"
	ClassDeviceNotActive = "DeviceNotActive"
)

// Error is what QEMU or the agent answered when it refused a command.
type Error struct {
	Command string
	Class   string
	Desc    string // for people; it changes between versions
}

// Error gives the command first. The class is left out where it says nothing.
func (e *Error) Error() string {
	if e.Class == ClassGeneric {
		return fmt.Sprintf("%s: %s", e.Command, e.Desc)
	}
	return fmt.Sprintf("%s: %s (%s)", e.Command, e.Desc, e.Class)
}
