// Package linuxguest runs a real Linux in QEMU for tests of live backups: Debian's
// cloud kernel under TCG, busybox, QEMU's guest agent, and on every disk an ext4
// file system in which a script writes files all the time.
//
// What the script promises is what makes a restored disk judgeable without
// knowing its bytes. Per disk it numbers its files; each lies beside a record of
// its number, length and SHA-256, which appears only after the file was synced.
// Numbers are announced to the host only after everything about them was synced.
// So a copy of the disk as of one instant
//
//   - has for every record a file that fits it, whatever else was under way;
//   - has every file that was announced before the instant, unless the script has
//     removed it since, which it does to none of the last window files;
//   - is a file system that needs no more than a replay of its journal, and not
//     even that when the guest was frozen at the instant.
//
// CheckDisk demands the first and the third, and of the second that no number is
// missing among the last ones; the caller compares the newest number with what
// the guest had announced before and after (Announced). A copy that is
// consistent but old is found out by that.
//
// The guest is made from packages that scripts/guest fetches. Without them tests
// are skipped, or fail when QBACKUP_REQUIRE_TOOLS is 1, as in package testtool.
//
// It leaves to others: bitmaps, backups, and what goes through the monitors and
// the agent's socket, apart from the power button.
//
// Concurrency: a Guest may be used in parallel. What ends the test does so in the
// test's goroutine only, as testing.TB demands.
//
// Serves I8: Stop fails the test when the guest saw an error on a disk.
package linuxguest
