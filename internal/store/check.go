package store

import "fmt"

// CheckKey returns an ErrInvalid error when key cannot name an object. Drivers
// call it first, so that no key ever leaves the folder or prefix of the store.
func CheckKey(op, key string) error {
	if ValidKey(key) {
		return nil
	}
	return Fail(op, "", ErrInvalid, fmt.Errorf("key %q", key), "")
}

// CheckPrefix is CheckKey for the argument of List.
func CheckPrefix(prefix string) error {
	if ValidPrefix(prefix) {
		return nil
	}
	return Fail("list", "", ErrInvalid, fmt.Errorf("prefix %q", prefix), "")
}

// CheckRange returns how many bytes Get(off, n) yields from an object of size
// bytes, or an ErrRange error when the range does not lie inside it.
func CheckRange(key string, off, n, size int64) (int64, error) {
	if off < 0 {
		return 0, Fail("get", key, ErrInvalid, fmt.Errorf("offset %d", off), "")
	}
	if off > size || n >= 0 && n > size-off {
		return 0, Fail("get", key, ErrRange, fmt.Errorf("%d bytes at offset %d, object has %d", n, off, size), "")
	}
	if n < 0 {
		return size - off, nil
	}
	return n, nil
}
