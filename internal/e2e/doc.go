// Package e2e runs the qbackup program as its users do: against images that real QEMU makes and writes, repositories in
// folders and in a real S3 server, kills, cuts and bad input. It has only tests.
//
// Each file holds one promise. Counts are reduced by default and full with QBACKUP_LONG=1; seeds are fixed, and a failure
// names its seed.
package e2e
