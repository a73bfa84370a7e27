package extent

// Union streams every byte that is in at least one of seqs. Zero is dropped:
// a range of the result says only that somebody named it.
//
// Each range costs one look at every stream. The streams are the bitmaps or
// the layers of one disk, a handful, for which a heap would not pay.
func Union(seqs ...Seq) Seq {
	return func(yield func(Extent, error) bool) {
		cursors := make([]*cursor, 0, len(seqs))
		for _, seq := range seqs {
			c := open(seq)
			defer c.stop()
			cursors = append(cursors, c)
		}
		out := joiner{yield: yield}
		var end int64 // all below it is in the result, or in no stream
		for {
			first, err := lowest(cursors)
			if first == nil || err != nil {
				out.finish(err)
				return
			}
			e := first.cur
			first.advance()
			off := max(e.Off, end)
			if off < e.End() {
				end = e.End()
				if !out.add(Extent{Off: off, Len: end - off}) {
					return
				}
			}
		}
	}
}

// lowest returns the cursor whose current range starts first, nil when all are
// at their end, or the error that one of them met.
func lowest(cursors []*cursor) (*cursor, error) {
	var first *cursor
	for _, c := range cursors {
		if c.err != nil {
			return nil, c.err
		}
		if c.ok && (first == nil || c.cur.Off < first.cur.Off) {
			first = c
		}
	}
	return first, nil
}

// Intersect streams every byte that is in both a and b. Zero is taken from b:
// a says which ranges are wanted, b says what is there.
//
// It stops reading at the end of the shorter stream, so an error of the other
// one beyond that point is not seen; it could not change the result.
func Intersect(a, b Seq) Seq {
	return func(yield func(Extent, error) bool) {
		ca, cb := open(a), open(b)
		defer ca.stop()
		defer cb.stop()
		out := joiner{yield: yield}
		for ca.ok && cb.ok {
			off := max(ca.cur.Off, cb.cur.Off)
			end := min(ca.cur.End(), cb.cur.End())
			if off < end && !out.add(Extent{Off: off, Len: end - off, Zero: cb.cur.Zero}) {
				return
			}
			ca.cut(end)
			cb.cut(end)
		}
		out.finish(firstError(ca, cb))
	}
}

// Subtract streams every byte that is in a and not in b, with a's Zero.
func Subtract(a, b Seq) Seq {
	return func(yield func(Extent, error) bool) {
		ca, cb := open(a), open(b)
		defer ca.stop()
		defer cb.stop()
		out := joiner{yield: yield}
		for ca.ok && cb.err == nil {
			e := ca.cur
			switch {
			case cb.ok && cb.cur.End() <= e.Off:
				cb.advance()
				continue
			case cb.ok && cb.cur.Off <= e.Off:
				ca.cut(cb.cur.End())
				continue
			case cb.ok && cb.cur.Off < e.End():
				e.Len = cb.cur.Off - e.Off
			}
			if !out.add(e) {
				return
			}
			ca.cut(e.End())
		}
		out.finish(firstError(ca, cb))
	}
}

func firstError(cursors ...*cursor) error {
	for _, c := range cursors {
		if c.err != nil {
			return c.err
		}
	}
	return nil
}
