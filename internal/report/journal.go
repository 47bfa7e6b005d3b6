package report

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// journalSocket is where journald takes entries that have fields.
const journalSocket = "/run/systemd/journal/socket"

// Journal is the writer to give to [NewWriter] for a log that goes to w: one that
// gives systemd's journal entries with fields, if w is a stream to the journal,
// else w itself. Each key of a line becomes a field, so that
// `journalctl -u kzr KZR_EVENT=signal` finds what `event=signal` says.
func Journal(w io.Writer) io.Writer {
	f, ok := w.(*os.File)
	if !ok || !toJournal(f, os.Getenv("JOURNAL_STREAM")) {
		return w
	}
	j, err := dialJournal(journalSocket)
	if err != nil {
		return w // the lines get there, without fields
	}
	return j
}

// ErrorPrefix is what to put before a line to w that says why a program ends: in
// the journal it makes that line an error.
func ErrorPrefix(w io.Writer) string {
	if f, ok := w.(*os.File); ok && toJournal(f, os.Getenv("JOURNAL_STREAM")) {
		return "<3>"
	}
	return ""
}

// toJournal says whether f is what systemd connected to the journal: stream is
// that one's device and inode, and stays set in the environment when a shell
// sends the output elsewhere.
func toJournal(f *os.File, stream string) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// journal sends datagrams, each of which is one entry. Its descriptor is the
// runtime poller's, so that a journal that is slow holds no thread.
type journal struct {
	conn *net.UnixConn
	addr *net.UnixAddr
}

func dialJournal(path string) (*journal, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	// It is not connected: a socket that is made anew there is found again.
	return &journal{conn: conn, addr: &net.UnixAddr{Name: path, Net: "unixgram"}}, nil
}

func (j *journal) Write(entry []byte) (int, error) { return j.conn.WriteToUnix(entry, j.addr) }

func (j *journal) Close() error { return j.conn.Close() }

// messageIDs say to the journal's catalogue what kind of message a decision is; see
// deploy/systemd/kzr.catalog. They never change.
var messageIDs = map[string]string{
	EventStarted:    "0b8ba9cea2bf4a1d9454cab1bd539d11",
	EventSuspect:    "9707e2ab73794389872081b87f979cc5",
	EventSignal:     "08302bb1208946feb5f02bf26e2d420f",
	EventReaped:     "d858402a836a445cb25eb317dde4e16f",
	EventTerminated: "baa65650e90e418b8936245fa7b02e81",
	EventSpared:     "1a927234cd6649738b9b9393a5ef0da7",
	EventGaveUp:     "05ee6fca956544ca93848a6c3c8bc1ce",
	EventLostEvents: "7259bfe856214d97bc5c618f61bbdd98",
	EventReloaded:   "e1b384e4f98e450ab403bbb4cb066128",
	EventStopping:   "923bbb2550c746cb9ed521a02fe46dc9",
}

// appendEntry renders a record for the journal: the line that a reader sees as
// MESSAGE, then the record's keys as fields. A value holds no newline, which is
// what would begin another field.
func (h *handler) appendEntry(dst []byte, t time.Time, level slog.Level, msg string, attrs []slog.Attr) []byte {
	dst = append(dst, "SYSLOG_IDENTIFIER=kzr\nPRIORITY="...)
	dst = append(dst, priority(level), '\n')
	dst = append(dst, "MESSAGE="...)
	dst = h.appendRecord(dst, t, level, msg, attrs)
	for _, a := range attrs {
		if id := messageIDs[a.Value.String()]; a.Key == "event" && id != "" {
			dst = append(dst, "MESSAGE_ID="+id+"\n"...)
		}
		dst = append(dst, "KZR_"...)
		dst = appendFieldName(dst, a.Key)
		dst = append(dst, '=')
		dst = appendSafe(dst, fieldText(a.Value), maxText, false)
		dst = append(dst, '\n')
	}
	return dst
}

// fieldText is a value as the JSON log has it: a duration is seconds.
func fieldText(v slog.Value) string {
	if v.Kind() == slog.KindDuration {
		return strconv.FormatFloat(Seconds(v.Duration()), 'f', -1, 64)
	}
	return valueText(v)
}

// appendFieldName makes a key a name that the journal takes: capitals, digits
// and underscores. oldestSeconds is OLDEST_SECONDS.
func appendFieldName(dst []byte, key string) []byte {
	for i, c := range []byte(key) {
		switch {
		case 'a' <= c && c <= 'z':
			c -= 'a' - 'A'
		case 'A' <= c && c <= 'Z':
			if i > 0 && 'a' <= key[i-1] && key[i-1] <= 'z' {
				dst = append(dst, '_')
			}
		case '0' <= c && c <= '9':
		default:
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// priority is a level as syslog counts.
func priority(l slog.Level) byte {
	switch {
	case l >= slog.LevelError:
		return '3'
	case l >= slog.LevelWarn:
		return '4'
	case l >= slog.LevelInfo:
		return '6'
	}
	return '7'
}
