package offline

import (
	"reflect"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
)

func TestThePlanOfACommit(t *testing.T) {
	const run = 9
	const frozen, recording, broken = 0, 1, 2
	b := func(stamp, prev, kind int) bitmap {
		name := bitmapName(t, stamp, prev)
		parsed, _ := ident.ParseBitmapName(name)
		return bitmap{name: parsed, Bitmap: qcow2.Bitmap{Name: name, Enabled: kind != frozen, InUse: kind == broken}}
	}
	n := func(stamp, prev int) string { return bitmapName(t, stamp, prev) }
	fresh := []qcow2.BitmapSpec{{Name: n(run, 0), GranularityBytes: 64 << 10, Enabled: true}}
	for _, c := range []struct {
		name    string
		ours    []bitmap
		invalid bool
		keep    bool // no family is to be added
		want    plan
	}{
		{name: "nothing is there", want: plan{add: fresh}},
		{name: "nothing is there, and nothing is wanted", keep: true, want: plan{}},
		{name: "one records", ours: []bitmap{b(1, 0, recording)}, want: plan{restart: n(1, 0), final: n(run, 0)}},
		{name: "one records, and no family is wanted", ours: []bitmap{b(1, 0, recording)}, keep: true, want: plan{restart: n(1, 0), final: n(run, 0)}},
		{name: "one records and one is frozen", ours: []bitmap{b(1, 0, frozen), b(2, 1, recording)},
			want: plan{restart: n(2, 1), final: n(run, 0), remove: []string{n(1, 0)}}},
		{name: "several record", ours: []bitmap{b(2, 0, recording), b(3, 0, recording), b(1, 0, recording)},
			want: plan{restart: n(3, 0), final: n(run, 0), remove: []string{n(2, 0), n(1, 0)}}},
		{name: "one records and one is in use", ours: []bitmap{b(1, 0, recording), b(2, 1, broken)},
			want: plan{restart: n(1, 0), final: n(run, 0), remove: []string{n(2, 1)}}},
		{name: "only frozen", ours: []bitmap{b(1, 0, frozen)}, want: plan{add: fresh, remove: []string{n(1, 0)}}},
		{name: "only in use", ours: []bitmap{b(1, 0, broken)}, want: plan{add: fresh, remove: []string{n(1, 0)}}},
		{name: "in use, and no family is wanted", ours: []bitmap{b(1, 0, broken)}, keep: true, want: plan{}},
		{name: "autoclear bit unset", ours: []bitmap{b(1, 0, recording)}, invalid: true, want: plan{add: fresh}},
		{name: "again after the first step", ours: []bitmap{b(1, 0, frozen), b(run, 1, recording)},
			want: plan{restart: n(run, 1), final: n(run, 0), remove: []string{n(1, 0)}}},
		{name: "again after the restart", ours: []bitmap{b(1, 0, frozen), b(run, 0, recording), b(11, 0, recording)},
			want: plan{restart: n(run, 0), final: n(run, 0), remove: []string{n(1, 0), n(11, 0)}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := planCommit(c.ours, !c.invalid, testFamily, testRun(t, run), !c.keep)
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}
