package store

// Wrapper is a Store around another one.
type Wrapper interface {
	Unwrap() Store
}

// As finds the outermost store in a stack of wrappers that also implements T, an
// optional interface that some drivers have. The call then goes past the
// decorators above it.
func As[T any](s Store) (T, bool) {
	for {
		if t, ok := s.(T); ok {
			return t, true
		}
		w, ok := s.(Wrapper)
		if !ok {
			var none T
			return none, false
		}
		s = w.Unwrap()
	}
}
