package nbd

import "fmt"

// refusal is the server's answer to an option that it does not grant.
type refusal struct {
	option uint32
	kind   uint32
	text   string
	about  string // the export or the contexts asked for
}

// Error names what was refused, the reason and the server's words.
func (r *refusal) Error() string {
	text := fmt.Sprintf("%v: %s", r.class(), r.reason())
	if r.about != "" {
		text = fmt.Sprintf("%v: %s: %s", r.class(), r.about, r.reason())
	}
	if r.text != "" {
		text += fmt.Sprintf(" (it says: %s)", r.text)
	}
	if hint := r.hint(); hint != "" {
		text += "; " + hint
	}
	return text
}

// Unwrap reaches the class.
func (r *refusal) Unwrap() error { return r.class() }

// class says what the refusal means to the caller. A server without TLS may
// answer STARTTLS in several ways, and all mean the same.
func (r *refusal) class() error {
	switch {
	case r.option == optionStartTLS:
		return ErrTLSRefused
	case r.kind == replyTLSRequired:
		return ErrTLSRequired
	case r.kind == replyUnknown:
		return ErrNoExport
	case r.option == optionSetMetaContext && r.kind != replyShutdown:
		return ErrNoContext
	}
	return ErrRefused
}

func (r *refusal) reason() string {
	name := map[uint32]string{
		optionStartTLS: "STARTTLS", optionGo: "GO", optionStructuredReply: "STRUCTURED_REPLY", optionSetMetaContext: "SET_META_CONTEXT",
	}[r.option]
	reason := map[uint32]string{
		replyUnsupported: "not supported", replyPolicy: "forbidden by its policy", replyInvalid: "not valid",
		replyPlatform: "not supported on its platform", replyTLSRequired: "only after TLS", replyUnknown: "unknown",
		replyShutdown: "it is shutting down", replyBlockSize: "block sizes must be asked for", replyTooBig: "too large",
		replyExtendedReply: "extended headers must be asked for",
	}[r.kind]
	if reason == "" {
		reason = fmt.Sprintf("reply %#x", r.kind)
	}
	return name + " " + reason
}

func (r *refusal) hint() string {
	switch r.class() {
	case ErrTLSRefused:
		return "connect without TLS, or configure TLS in the server"
	case ErrTLSRequired:
		return "give certificates for it"
	case ErrNoExport:
		return "`nbdinfo --list` shows the exports"
	}
	return ""
}
