// Package mem keeps a store in memory, for tests and simulations.
//
// It leaves durability to nobody: the objects die with the Store. Put copies the
// bytes, so that nothing a caller does later changes an object.
//
// Concurrency: a Store is safe for parallel use. It serves I4 (objects are never
// overwritten) like every driver.
package mem
