// Package s3 keeps a store in a bucket of an S3 service (AWS, Ceph RGW, MinIO,
// versitygw, R2 and others): the key of an object is the prefix and our key.
//
// It leaves to others retries (package retry), limits, and the proof that the
// service keeps its promises (package probe). Every call is one attempt: the
// client's own retries are off, so that the outcome of each request is known to
// the one who decides about the next.
//
// Rules of this driver:
//
//   - An object is one PUT of known length, never a multipart upload: some
//     services ignore the condition when an upload is completed.
//   - PUT carries "If-None-Match: *", so that an object is never replaced (I4),
//     and the CRC32C of the body as a header, so that the service refuses a body
//     that was damaged on its way. Payload hashes in the signature and chunked
//     bodies with trailers cost two to three times the processor time and are not
//     understood by every service.
//   - GET is one request for one range; the length of the answer is checked.
//   - The region is always set, which saves a request and a permission.
//   - An attempt ends when no byte has moved for a while (Options.Stall), however
//     long it takes as a whole.
//
// Concurrency: a Store is safe for parallel use.
package s3
