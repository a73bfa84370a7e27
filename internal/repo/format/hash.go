package format

import (
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/blake3"
)

// Hash is the plain BLAKE3-256 of an object or a part of one; 64 lower-case hex
// digits as text.
type Hash [32]byte

// SumHash hashes b.
func SumHash(b []byte) Hash { return blake3.Sum256(b) }

// String gives 64 lower-case hex digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether no hash was set.
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText gives the text of String.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads the text of String.
func (h *Hash) UnmarshalText(text []byte) error { return parseHex(h[:], text, "hash") }

// BlockHash is the first 16 bytes of the keyed BLAKE3 of a block, padded to the
// full block size. The key is the repository's, so that equal blocks of two
// repositories have different hashes.
type BlockHash [16]byte

// String gives 32 lower-case hex digits.
func (h BlockHash) String() string { return hex.EncodeToString(h[:]) }

// HashKey is the key of the block hashes of a repository.
type HashKey [32]byte

// MarshalText gives 64 lower-case hex digits.
func (k HashKey) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(k[:])), nil }

// UnmarshalText reads 64 lower-case hex digits.
func (k *HashKey) UnmarshalText(text []byte) error { return parseHex(k[:], text, "hash key") }

// RepositoryID is the random identity of a repository; 32 hex digits as text.
type RepositoryID [16]byte

// NewRepositoryID makes a random id.
func NewRepositoryID(random io.Reader) (RepositoryID, error) {
	var r RepositoryID
	return r, fillRandom(r[:], random, "repository id")
}

// String gives 32 lower-case hex digits.
func (r RepositoryID) String() string { return hex.EncodeToString(r[:]) }

// IsZero reports whether no id was set.
func (r RepositoryID) IsZero() bool { return r == RepositoryID{} }

// MarshalText gives the text of String.
func (r RepositoryID) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the text of String.
func (r *RepositoryID) UnmarshalText(text []byte) error { return parseHex(r[:], text, "repository id") }

// Nonce is made anew for each attempt to write a slot; reading one's own back is
// the proof that the write took place. 32 hex digits as text.
type Nonce [16]byte

// NewNonce makes a random nonce.
func NewNonce(random io.Reader) (Nonce, error) {
	var n Nonce
	return n, fillRandom(n[:], random, "nonce")
}

// String gives 32 lower-case hex digits.
func (n Nonce) String() string { return hex.EncodeToString(n[:]) }

// IsZero reports whether no nonce was set.
func (n Nonce) IsZero() bool { return n == Nonce{} }

// MarshalText gives the text of String.
func (n Nonce) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads the text of String.
func (n *Nonce) UnmarshalText(text []byte) error { return parseHex(n[:], text, "nonce") }

func fillRandom(dst []byte, random io.Reader, what string) error {
	if _, err := io.ReadFull(random, dst); err != nil {
		return fmt.Errorf("read random bytes for a %s: %w", what, err)
	}
	return nil
}

// parseHex accepts lower-case digits only, so that every value has one text and a
// flipped bit in it (b to B) is noticed.
func parseHex(dst, text []byte, what string) error {
	ok := len(text) == 2*len(dst)
	for _, c := range text {
		ok = ok && (c >= '0' && c <= '9' || c >= 'a' && c <= 'f')
	}
	if ok {
		_, err := hex.Decode(dst, text)
		ok = err == nil
	}
	if !ok {
		return corrupt(what, -1, "want %d lower-case hex digits", 2*len(dst))
	}
	return nil
}

// BlockHasher computes block hashes. It may be used from several goroutines.
type BlockHasher struct {
	pool sync.Pool // of *blake3.Hasher, each with the key set
}

// NewBlockHasher makes a hasher with a repository's key.
func NewBlockHasher(key HashKey) *BlockHasher {
	h := &BlockHasher{}
	h.pool.New = func() any {
		keyed, err := blake3.NewKeyed(key[:])
		if err != nil {
			panic("format: blake3 refused a key of 32 bytes: " + err.Error())
		}
		return keyed
	}
	return h
}

// Sum hashes one block of full size; a partial block must be padded by the caller.
func (h *BlockHasher) Sum(block []byte) BlockHash {
	keyed := h.pool.Get().(*blake3.Hasher)
	defer h.pool.Put(keyed)
	keyed.Reset()
	keyed.Write(block)
	var full [32]byte
	return BlockHash(keyed.Sum(full[:0])[:blockHashBytes])
}
