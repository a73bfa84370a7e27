// Package probe finds out whether a store keeps the promises of package store,
// instead of trusting that a service honours conditions and checksums.
//
// It leaves to others what to do without a promise (pruning does less). Full runs
// when a repository is made and writes some small objects under "probe/", which
// stay, because agents have no right to delete. Light runs later and only reads
// one of them and offers it again.
//
// A Verdict is plain data for JSON and metrics. An error means that nothing was
// found out (I7).
//
// Concurrency: functions may run in parallel; they use new keys each time. It
// serves I4.
package probe
