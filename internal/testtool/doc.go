// Package testtool lets tests use real programs: it finds them, runs them, and
// says how often a proof is repeated.
//
// It is imported by tests only. A missing program skips the test, so that the
// suite runs on any machine, unless QBACKUP_REQUIRE_TOOLS=1 is set, as in
// continuous integration, where a proof must not be skipped unseen.
//
// Concurrency: all functions may be called from parallel tests.
package testtool
