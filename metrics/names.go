package metrics

import "github.com/prometheus/client_golang/prometheus"

// metric is one family of the exposition.
type metric struct {
	name, help string
	kind       prometheus.ValueType // Untyped: a histogram
	labels     []string
	desc       *prometheus.Desc
}

func define(kind prometheus.ValueType, name, help string, labels ...string) *metric {
	return &metric{name, help, kind, labels, prometheus.NewDesc(name, help, labels, nil)}
}

func gauge(name, help string, labels ...string) *metric {
	return define(prometheus.GaugeValue, "qbackup_"+name, help, labels...)
}

func counter(name, help string, labels ...string) *metric {
	return define(prometheus.CounterValue, "qbackup_"+name, help, labels...)
}

// The labels: machine and disk are the operator's names; the others have closed sets of
// values.
var (
	buildInfo     = gauge("build_info", "Version of qbackup and of Go; always 1.", "version", "go_version")
	stateReadable = gauge("state_readable", "Whether what this host remembers of its backups can be read.")

	configuredMachines = gauge("configured_machines", "Machines that the configuration comes to.")
	configProblems     = gauge("configuration_problems", "Entries of the configuration of which no machine was found.")
	unassigned         = gauge("unassigned_domain", "A domain of libvirt that no entry of the configuration names; always 1.", "domain")
	objective          = gauge("objective_seconds", "How old the newest restore point with all disks may get.", "machine")

	lastSuccess  = gauge("last_success_timestamp_seconds", "Point in time of the newest restore point with all disks.", "machine")
	latestPoint  = gauge("latest_point_timestamp_seconds", "Point in time of the newest restore point, with or without all disks.", "machine")
	lastAttempt  = gauge("last_attempt_timestamp_seconds", "When the last backup ended, however it did.", "machine")
	lastStatus   = gauge("last_attempt_status", "How the last backup ended: 1 for its status, 0 for the others.", "machine", "status")
	lastDuration = gauge("last_attempt_duration_seconds", "How long the last backup took.", "machine")
	lastFreeze   = gauge("last_attempt_freeze_seconds", "How long the guest's file systems were frozen for the last backup.", "machine")
	lastAlarms   = gauge("last_attempt_alarms", "What the last backup found that somebody should look at.", "machine")

	diskMode    = gauge("disk_mode", "How a disk was backed up for the newest point, and why not incrementally; always 1.", "machine", "disk", "mode", "reason")
	diskSize    = gauge("disk_size_bytes", "Size of a disk at the newest point.", "machine", "disk")
	diskDirty   = gauge("disk_dirty_bytes", "What of a disk was dirty for the newest point.", "machine", "disk")
	diskRead    = gauge("disk_read_bytes", "What of a disk was read for the newest point.", "machine", "disk")
	diskZero    = gauge("disk_zero_bytes", "What of a disk was zero for the newest point.", "machine", "disk")
	diskSkipped = gauge("disk_skipped_bytes", "What of a disk was read for the newest point and was stored before.", "machine", "disk")
	diskStored  = gauge("disk_stored_bytes", "What was stored of a disk for the newest point, compressed.", "machine", "disk")

	nextBytes  = gauge("next_bytes", "What of a disk the next backup would read, as it was looked at last.", "machine", "disk", "reason")
	nextLooked = gauge("next_timestamp_seconds", "When the machine was looked at for that.", "machine")

	attempts         = counter("attempts_total", "Backups by how they ended.", "machine", "status")
	rescans          = counter("rescans_total", "Disks that were read in full instead of incrementally, by reason.", "machine", "reason")
	alarms           = counter("alarms_total", "What backups found that somebody should look at, by kind.", "machine", "kind")
	sampleMismatches = counter("sample_mismatches_total", "Backups that found blocks changed that their bitmap called clean.", "machine")
	bitmapResets     = counter("bitmap_resets_total", "Disks whose bitmaps were emptied after a point.", "machine")
	resetFailures    = counter("bitmap_reset_failures_total", "Disks whose bitmaps could not be emptied after a point; the next backup does it.", "machine")
	scannedBlocks    = counter("scanned_blocks_total", "Blocks of 64 KiB of which it was found out whether they were dirty.", "machine")
	dirtyBytes       = counter("dirty_bytes_total", "What was dirty.", "machine")
	readBytes        = counter("read_bytes_total", "What was read from disks.", "machine")
	zeroBytes        = counter("zero_bytes_total", "What was zero.", "machine")
	skippedBytes     = counter("skipped_bytes_total", "What was read and was stored before.", "machine")
	storedBytes      = counter("stored_bytes_total", "What was stored, compressed.", "machine")
	durationTotal    = counter("attempt_duration_seconds_total", "Time that backups took.", "machine")
	freezeTotal      = counter("freeze_seconds_total", "Time that the guest's file systems were frozen.", "machine")

	verifiedTime   = gauge("verified_timestamp_seconds", "When the machine's points were verified last.", "machine")
	damagedObjects = gauge("damaged_objects", "Damaged objects that the last verification found.", "machine")
	damagedPoints  = gauge("damaged_points", "Points that the last verification found to have lost something.", "machine")

	points          = gauge("points", "Restore points of the machine in the repository, when they were looked at last.", "machine")
	oldestPoint     = gauge("oldest_point_timestamp_seconds", "Point in time of the oldest of them.", "machine")
	newestPoint     = gauge("newest_point_timestamp_seconds", "Point in time of the newest of them.", "machine")
	pointsTime      = gauge("points_timestamp_seconds", "When they were looked at last: after a backup with a policy, and by a prune.", "machine")
	forgottenPoints = counter("forgotten_points_total", "Points that this host's policy has forgotten.", "machine")
	retentionFailed = gauge("retention_failed", "Whether the policy could not be applied the last time.", "machine")
	machineStored   = gauge("machine_stored_bytes", "What the machine's data took in the store after the last prune.", "machine")

	pruneTime    = gauge("prune_timestamp_seconds", "When this host's last prune ended.")
	pruneFailed  = gauge("prune_failed", "Whether the last prune failed, or left machines alone.")
	pruneObjects = counter("pruned_objects_total", "Objects that prunes of this host have deleted.")
	pruneBytes   = counter("pruned_bytes_total", "What these took.")
	pruneAborted = counter("pruned_runs_total", "Dead runs that prunes of this host have ended.")

	storeRequests = counter("store_requests_total", "Requests to the store.", "operation", "outcome")
	storeRetries  = counter("store_retries_total", "Requests to the store that were tried again.")
	storeSent     = counter("store_sent_bytes_total", "Bytes sent to the store.")
	storeReceived = counter("store_received_bytes_total", "Bytes received from the store.")
	storeLatency  = define(prometheus.UntypedValue, "qbackup_store_request_duration_seconds", "How long requests to the store took, of this process.", "operation")
	createOnly    = gauge("store_create_only", "Whether the store refuses to overwrite an object.")
	probeTime     = gauge("store_probe_timestamp_seconds", "When that was tried out last.")

	runningBackups = gauge("running_backups", "Backups that run now.")
	runningSince   = gauge("running_since_timestamp_seconds", "When a backup that runs began.", "machine")
	runningTotal   = gauge("running_total_bytes", "What a backup that runs has to look at.", "machine", "disk")
	runningPassed  = gauge("running_passed_bytes", "What of that is dealt with.", "machine", "disk")
	stageBusy      = gauge("running_stage_busy_seconds", "Time that the workers of a stage of a backup that runs were busy, all together.", "machine", "stage")
	queued         = gauge("running_queued_windows", "Pieces of disks that are between the stages of a backup that runs.", "machine")
	inFlight       = gauge("running_buffer_bytes", "Buffers of a backup that runs.", "machine")
	scratchBytes   = gauge("running_scratch_bytes", "Space taken by what the guest has overwritten since the point in time of a backup that runs.", "machine")
)

// all lists the metrics in the order of the manual.
func all() []*metric {
	return []*metric{
		buildInfo, stateReadable, configuredMachines, configProblems, unassigned, objective,
		lastSuccess, latestPoint, lastAttempt, lastStatus, lastDuration, lastFreeze, lastAlarms,
		diskMode, diskSize, diskDirty, diskRead, diskZero, diskSkipped, diskStored, nextBytes, nextLooked,
		attempts, rescans, alarms, sampleMismatches, bitmapResets, resetFailures, scannedBlocks, dirtyBytes, readBytes, zeroBytes, skippedBytes, storedBytes, durationTotal, freezeTotal,
		verifiedTime, damagedObjects, damagedPoints,
		points, oldestPoint, newestPoint, pointsTime, forgottenPoints, retentionFailed, machineStored,
		pruneTime, pruneFailed, pruneObjects, pruneBytes, pruneAborted,
		storeRequests, storeRetries, storeSent, storeReceived, storeLatency, createOnly, probeTime,
		runningBackups, runningSince, runningTotal, runningPassed, stageBusy, queued, inFlight, scratchBytes,
	}
}
