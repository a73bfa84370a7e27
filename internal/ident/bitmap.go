package ident

import "encoding/hex"

// BitmapPrefix begins the name of every bitmap that qbackup owns; it touches no
// others. The digit is the version of the form of the names.
const BitmapPrefix = "qb1-"

// BitmapNameLen is the length of every name of our form. One length for all
// lets a reset overwrite the stamp in place.
const BitmapNameLen = len(BitmapPrefix) + 8 + 1 + RunIDLen + 1 + RunIDLen

// FamilyID names the bitmaps of one machine in an image: the first four bytes of
// the machine's id, as 8 lower-case hex digits. Two machines of different
// repositories meet in one image with a chance of 2^-32; the stamp, a run of the
// repository at hand, decides then.
type FamilyID [4]byte

// ParseFamilyID reads 8 lower-case hex digits.
func ParseFamilyID(s string) (FamilyID, error) {
	var f FamilyID
	if !decodeHex(f[:], s) {
		return FamilyID{}, syntaxError("family id", s, "8 lower-case hex digits")
	}
	return f, nil
}

// String gives 8 lower-case hex digits.
func (f FamilyID) String() string { return hex.EncodeToString(f[:]) }

// MarshalText gives the text of String.
func (f FamilyID) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads the text of String.
func (f *FamilyID) UnmarshalText(text []byte) error {
	parsed, err := ParseFamilyID(string(text))
	if err != nil {
		return err
	}
	*f = parsed
	return nil
}

// BitmapName is what the name of one of our bitmaps says: whose it is, the run
// whose point in time started it, and the stamp of the bitmap that was frozen by
// the same step (zero: none).
type BitmapName struct {
	Family      FamilyID
	Stamp, Prev RunID
}

// ParseBitmapName reads "qb1-<8 hex>-<26>-<26>". False means that the bitmap is
// not ours: also when the prefix is right and the rest is not, because a name
// that says nothing exact is no claim (I3). A stamp of zeros is refused.
func ParseBitmapName(s string) (BitmapName, bool) {
	const family = len(BitmapPrefix)
	const stamp = family + 8 + 1
	const prev = stamp + RunIDLen + 1
	if len(s) != BitmapNameLen || s[:family] != BitmapPrefix || s[stamp-1] != '-' || s[prev-1] != '-' {
		return BitmapName{}, false
	}
	var n BitmapName
	var err error
	if n.Family, err = ParseFamilyID(s[family : stamp-1]); err != nil {
		return BitmapName{}, false
	}
	if n.Stamp, err = ParseRunID(s[stamp : prev-1]); err != nil {
		return BitmapName{}, false
	}
	if n.Prev, err = parseRunOrNone(s[prev:]); err != nil {
		return BitmapName{}, false
	}
	return n, true
}

// String gives the 66 bytes of the name.
func (n BitmapName) String() string {
	return BitmapPrefix + n.Family.String() + "-" + n.Stamp.String() + "-" + n.Prev.String()
}
