package linuxguest

import (
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// monitorTimeout bounds one conversation with a monitor.
const monitorTimeout = 10 * time.Second

// execute runs one QMP command over a connection of its own; arguments may be nil.
// It leaves out what its few callers do not need: answers, events, cancelling.
func execute(socket, command string, arguments map[string]any) error {
	conn, err := net.DialTimeout("unix", socket, monitorTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(monitorTimeout)); err != nil {
		return err
	}
	from, to := json.NewDecoder(conn), json.NewEncoder(conn)
	var greeting struct {
		QMP json.RawMessage
	}
	if err := from.Decode(&greeting); err != nil {
		return fmt.Errorf("read the greeting: %w", err)
	}
	type request struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments,omitempty"`
	}
	for _, r := range []request{{Execute: "qmp_capabilities"}, {command, arguments}} {
		if err := to.Encode(r); err != nil {
			return err
		}
		if err := answer(from); err != nil {
			return fmt.Errorf("%s: %w", r.Execute, err)
		}
	}
	return nil
}

// answer reads up to the answer of a command; events come in between.
func answer(from *json.Decoder) error {
	for {
		var message struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := from.Decode(&message); err != nil {
			return err
		}
		switch {
		case message.Error != nil:
			return fmt.Errorf("the monitor says: %s", message.Error.Desc)
		case message.Return != nil:
			return nil
		}
	}
}
