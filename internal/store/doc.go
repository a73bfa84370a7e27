// Package store is the seam to whatever holds the repository: five verbs on
// immutable objects, and the classes of their errors.
//
// It leaves to others what the keys mean and what the bytes are. Drivers are
// the packages dir (a local folder), s3 and mem; the decorators retry, limit,
// observe and fault wrap any Store and are one themselves; location stacks them;
// storetest is the suite that each of them passes.
//
// Objects are written once. Put never replaces an object (I4), and an object is
// either there with all its bytes or not there at all (I1): a reader never sees
// half of one, not even after a power failure. After a Put that returned nil,
// Get, Stat and List of every process see the object.
//
// A key is a relative path of segments of [a-z0-9._-], parted by slashes; no
// segment begins with a dot. Callers choose their keys so that none is a folder
// of another ("a" and "a/b" do not go together), because in a folder one name
// cannot be both.
//
// Concurrency: every method of a Store may be called from any number of
// goroutines at once. A call returns soon after its context ends. The outcome of
// a Put that returned any error but ErrExists and ErrInvalid is unknown: the
// object may be there, or may appear later (I7).
package store
