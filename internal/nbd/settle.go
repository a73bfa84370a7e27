package nbd

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"time"
)

// Settle ends the handshake of a connection that somebody has left, and does no harm to one whose handshake is over. Nobody
// else may read from it. QEMU 7.2 waits for ever in `nbd-server-stop`, and with it the guest, when a client is in its
// handshake that neither goes on nor ends.
//
// It sends a request to read a few bytes. In a handshake that is no option, and the server hangs up; afterwards it is a
// request like any other. More of them fill an option whose rest never came. nil says that the server answered or hung up.
func Settle(c net.Conn, within time.Duration) (err error) {
	cookie := rand.Text()[:8]
	request := binary.BigEndian.AppendUint32(nil, magicRequest)
	request = binary.BigEndian.AppendUint16(request, 0)
	request = binary.BigEndian.AppendUint16(request, commandRead)
	request = append(request, cookie...)
	request = binary.BigEndian.AppendUint64(request, 0)
	request = binary.BigEndian.AppendUint32(request, settleBytes)
	for _, n := range settleRequests {
		if err := c.SetDeadline(time.Now().Add(within / time.Duration(len(settleRequests)))); err != nil {
			return err
		}
		if _, err = c.Write(bytes.Repeat(request, n)); err == nil {
			err = await(c, cookie)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
	}
	return err
}

// await reads until the answer to a request with this cookie has come. What was asked before is answered before. Where in
// that we are is not known, but the cookie can be found.
func await(c net.Conn, cookie string) error {
	var seen []byte
	for b := make([]byte, 64<<10); ; {
		n, err := c.Read(b)
		seen = append(seen, b[:n]...)
		if bytes.Contains(seen, []byte(cookie)) {
			return nil
		}
		seen = bytes.Clone(seen[max(0, len(seen)-len(cookie)):])
		if err != nil {
			return err
		}
	}
}

// settleRequests are how many requests are sent, until something happens. All together are longer than any option.
var settleRequests = [...]int{1, 16, 2 * maxString / requestBytes}

// settleBytes is what each reads: some images have no smaller blocks.
const settleBytes = 512
