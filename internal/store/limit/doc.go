// Package limit bounds how fast a store is used: bytes per second up and down, and
// calls per second.
//
// It leaves to others how many calls run at once. A body is handed on whole once
// its share of time has passed, so over a time much longer than one object takes,
// the mean rate holds; a body that arrives is slowed while it is read.
//
// Concurrency: a Store is safe for parallel use; parallel calls share the limits.
// It serves I8: the guest's host keeps some of its line.
package limit
