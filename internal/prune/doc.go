// Package prune deletes what no point needs any more.
//
// It looks at one machine at a time, twice, and deletes what both looks would delete: the packs, map objects and
// manifests of runs that were aborted, or whose point was forgotten longer than the grace ago, as far as nothing living
// refers to them. A run that gives no sign of life for days loses its slot here. Any number of pruners may run next to
// each other and to backups. The order of the requests is the safety of it; the page on the format has it, with reasons.
//
// Left to others: which points are forgotten (retention), and when.
//
// It serves I1 (nothing that a point or a living run refers to is deleted) and I4 (slots, tombstones and pins stay, so
// that no late write brings a point back).
package prune
