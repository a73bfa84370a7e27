// Package retry is the only place where a call to a store is tried again.
//
// It leaves to the drivers to say what is worth it: only errors that match
// store.ErrTransient are retried, with exponential delays and full jitter, until
// the budget of the operation is used up (15 minutes unless set) or its context
// ends. As long as the store has never answered, the budget for ErrUnreachable is
// shorter (30 seconds), because then a wrong address is likelier than an outage.
//
// A Put whose answer was lost has an unknown outcome. When a later attempt finds
// the key taken, the object is read and compared: the same bytes mean that an
// earlier attempt arrived, others mean ErrExists. A Get goes on where its body
// broke off, and a List after the last key it yielded; both rest on objects never
// changing (I4).
//
// When a store answers that it is asked too much (store.ErrBusy), the number of
// calls in flight is halved; each success raises it again by a fraction.
//
// Concurrency: a Store is safe for parallel use and starts no goroutine.
package retry
