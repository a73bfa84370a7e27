package agent

// Reason says why a disk was not backed up incrementally. The set is closed: a
// reason is a word for people, for the record and for a metric's label alike.
type Reason string

// The reasons. ReasonNone goes with an incremental only.
const (
	ReasonNone          Reason = ""
	ReasonFirst         Reason = "first backup"
	ReasonAsked         Reason = "asked for"
	ReasonRaw           Reason = "raw image has no bitmaps"
	ReasonVersion2      Reason = "qcow2 version 2 has no bitmaps"
	ReasonAutoclear     Reason = "bitmaps not valid (autoclear bit unset)"
	ReasonUnreadable    Reason = "bitmaps cannot be read"
	ReasonTwoLayers     Reason = "our bitmaps in more than one layer"
	ReasonNoBitmap      Reason = "no bitmap"
	ReasonOnlyFrozen    Reason = "only frozen bitmaps"
	ReasonLinkMissing   Reason = "link missing between bitmaps"
	ReasonInUse         Reason = "bitmap in use after a crash"
	ReasonUnknownFlags  Reason = "bitmap with unknown flags"
	ReasonUnknownStamp  Reason = "unknown stamp"
	ReasonFailedRun     Reason = "only bitmaps of failed runs"
	ReasonForgotten     Reason = "base was forgotten"
	ReasonNotCaptured   Reason = "base did not capture this disk"
	ReasonBaseDamaged   Reason = "base is damaged"
	ReasonBlockSize     Reason = "block size changed"
	ReasonShrank        Reason = "disk shrank"
	ReasonChainChanged  Reason = "chain changed"
	ReasonDataFile      Reason = "data file replaced"
	ReasonActiveL1      Reason = "active L1 table changed without a bit"
	ReasonNoBits        Reason = "no bit although the guest wrote"
	ReasonSample        Reason = "sample mismatch"
	ReasonSwapped       Reason = "disks may be swapped"
	ReasonUnsettledBase Reason = "base given up during the run"
)

// Reasons lists every reason but ReasonNone, for metrics and tests.
func Reasons() []Reason {
	return []Reason{
		ReasonFirst, ReasonAsked, ReasonRaw, ReasonVersion2, ReasonAutoclear, ReasonUnreadable, ReasonTwoLayers,
		ReasonNoBitmap, ReasonOnlyFrozen, ReasonLinkMissing, ReasonInUse, ReasonUnknownFlags, ReasonUnknownStamp,
		ReasonFailedRun, ReasonForgotten, ReasonNotCaptured, ReasonBaseDamaged, ReasonBlockSize, ReasonShrank,
		ReasonChainChanged, ReasonDataFile, ReasonActiveL1, ReasonNoBits, ReasonSample, ReasonSwapped, ReasonUnsettledBase,
	}
}

// AlarmKind names something that a person should look at although the backup
// went on. The set is closed.
type AlarmKind string

// The alarms.
const (
	// AlarmRepositoryRolledBack: an image or this host knows a run that the
	// repository never heard of.
	AlarmRepositoryRolledBack AlarmKind = "repository rolled back"
	// AlarmImageRolledBack: the image continues an older point than the newest.
	AlarmImageRolledBack AlarmKind = "image rolled back or cloned"
	// AlarmSample: blocks that the bitmap calls clean have changed.
	AlarmSample AlarmKind = "sample mismatch"
	// AlarmSwapped: a disk's file is another one and its content could not be told
	// from another disk's.
	AlarmSwapped AlarmKind = "disks may be swapped"
	// AlarmNoBits: the guest wrote and no bit says so.
	AlarmNoBits AlarmKind = "writes without bits"
	// AlarmDamage: a point that a disk builds on, or would, cannot be read.
	AlarmDamage AlarmKind = "damage found"
	// AlarmDiskGone: the newest point has a disk that this backup was not given.
	AlarmDiskGone AlarmKind = "disk gone"
	// AlarmCreateOnly: the store does not refuse to overwrite.
	AlarmCreateOnly AlarmKind = "store overwrites"
)

// Alarm is one such thing.
type Alarm struct {
	Kind AlarmKind `json:"kind"`
	Disk string    `json:"disk,omitempty"`
	Text string    `json:"text"`
}
