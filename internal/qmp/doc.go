// Package qmp speaks the two JSON protocols of a virtual machine: QMP with QEMU
// (Monitor), and the protocol of the agent in the guest (Agent), both over unix
// sockets that QEMU made with "-chardev socket,server=on".
//
// It leaves to others what is asked and what an answer means: it knows commands by
// name only, qmp_capabilities, query-qmp-schema and the agent's freeze apart.
//
// Who answers is not trusted to be sane. Messages may be split over lines or many on
// one, and are bounded (Options.MessageBytes); anything else than the protocol ends
// the connection with ErrProtocol. The guest agent is in the hands of the guest: all
// that it can do is to make a call fail.
//
// QEMU serves one client of a monitor at a time and lets the next ones hang without a
// word. Dial waits a while for the greeting, because a client that is just ending may
// hold the monitor, and then says ErrTaken.
//
// What a client has sent is executed also after that client has gone, and the reply goes
// to the next one (seen with QEMU 7.2). So ids differ between connections, replies to others are
// skipped, and when Dial returns, all that earlier clients of this monitor had sent has
// been executed or dropped.
//
// Outcomes. A call that returned nil or an *Error was answered. After any other error
// the command may have been executed, or may be executed later (I7).
//
// Concurrency: the methods of a Monitor may be called from any number of goroutines;
// a call never waits for the reply of another, except as QEMU itself runs commands one
// after the other. An Agent serves one call at a time, others wait. A Monitor has two
// goroutines, which end in Close; an Agent has none.
//
// Serves I7 (no answer is never taken for an answer) and I8 (a freeze is only asked for
// when the agent has answered, so that no freeze waits in a buffer for an agent that
// starts later).
package qmp
