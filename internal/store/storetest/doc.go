// Package storetest proves that an implementation of store.Store keeps the
// promises of that interface: Run is the suite that every driver and decorator
// passes. S3 starts a real S3 server for tests of any package.
//
// It leaves to the tests of each driver what only that driver has: effects on the
// file system, requests, error codes.
//
// Concurrency: helpers may be called from parallel tests. It proves I4 (objects
// are never overwritten) and the part of I1 that a store answers for.
package storetest
