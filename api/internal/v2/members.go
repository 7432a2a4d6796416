package v2

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// member is one as clients see it. Its lists are never null.
type member struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
}

func shown(m state.Member) member {
	list := func(urls []string) []string { return append([]string{}, urls...) }
	return member{ID: fmt.Sprintf("%x", uint64(m.ID)), Name: m.Name, PeerURLs: list(m.PeerURLs), ClientURLs: list(m.ClientURLs)}
}

// members answers /v2/members and what is below it, which is rest.
func (h *Handler) serveMembers(w http.ResponseWriter, r *http.Request, rest string) {
	if !allow(w, r, http.MethodGet, http.MethodPost, http.MethodDelete, http.MethodPut) {
		return
	}
	h.clusterHeader(w.Header())
	switch r.Method {
	case http.MethodGet:
		h.showMembers(w, rest)
	case http.MethodPost:
		h.addMember(w, r)
	default:
		if rest == "" {
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		h.changeMember(w, r, rest)
	}
}

func (h *Handler) showMembers(w http.ResponseWriter, which string) {
	view := h.backend.View()
	switch which {
	case "":
		list := struct {
			Members []member `json:"members"`
		}{Members: []member{}}
		for _, m := range view.Members() {
			list.Members = append(list.Members, shown(m))
		}
		writeJSON(w, http.StatusOK, list)
	case "leader":
		leader, ok := view.Member(h.backend.Status().Leader)
		if !ok {
			writeMessage(w, http.StatusServiceUnavailable, "During election")
			return
		}
		writeJSON(w, http.StatusOK, shown(leader))
	default:
		writeMessage(w, http.StatusNotFound, "Not found")
	}
}

func (h *Handler) addMember(w http.ResponseWriter, r *http.Request) {
	urls, ok := readPeerURLs(w, r)
	if !ok {
		return
	}
	added, err := h.members.MemberAdd(r.Context(), &pb.MemberAddRequest{PeerURLs: urls})
	if err != nil {
		h.memberRefused(w, err, 0, "")
		return
	}
	writeJSON(w, http.StatusCreated, shown(state.Member{ID: state.MemberID(added.Member.ID), PeerURLs: added.Member.PeerURLs}))
}

// changeMember gives a member other addresses, or removes it. That an id is no
// number is found before a bad body; that nobody has it, after.
func (h *Handler) changeMember(w http.ResponseWriter, r *http.Request, text string) {
	number, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		writeMessage(w, http.StatusNotFound, "No such member: "+text)
		return
	}
	if r.Method == http.MethodDelete {
		if h.backend.View().Removed(state.MemberID(number)) {
			writeMessage(w, http.StatusGone, "Member permanently removed: "+text)
			return
		}
		_, err = h.members.MemberRemove(r.Context(), &pb.MemberRemoveRequest{ID: number})
	} else {
		urls, ok := readPeerURLs(w, r)
		if !ok {
			return
		}
		_, err = h.members.MemberUpdate(r.Context(), &pb.MemberUpdateRequest{ID: number, PeerURLs: urls})
	}
	if err != nil {
		h.memberRefused(w, err, state.MemberID(number), text)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// memberRefused tells why a change of the members was refused, as far as this
// API has words for it.
func (h *Handler) memberRefused(w http.ResponseWriter, err error, id state.MemberID, text string) {
	switch why := status.Convert(err).Message(); {
	case why == fault.PeerURLExists.Text:
		writeMessage(w, http.StatusConflict, "membership: peerURL exists")
	case why == fault.MemberExists.Text:
		writeMessage(w, http.StatusConflict, "membership: ID exists")
	case why == fault.MemberNotFound.Text && !h.backend.View().Removed(id):
		writeMessage(w, http.StatusNotFound, "No such member: "+text)
	default:
		writeMessage(w, http.StatusInternalServerError, "Internal Server Error")
	}
}

// readPeerURLs reads the body of a change of the members. If it is wrong it
// answers.
func readPeerURLs(w http.ResponseWriter, r *http.Request) ([]string, bool) {
	contentType := r.Header.Get("Content-Type")
	if kind, _, ok := strings.Cut(contentType, ";"); ok {
		contentType = strings.TrimSpace(strings.ToLower(kind))
	}
	if contentType != "application/json" {
		writeMessage(w, http.StatusUnsupportedMediaType, fmt.Sprintf("Bad Content-Type %s, accept application/json", contentType))
		return nil, false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	var asked struct {
		PeerURLs []string `json:"peerURLs"`
	}
	if err == nil {
		err = json.Unmarshal(body, &asked)
	}
	if err == nil {
		err = checkURLs(asked.PeerURLs)
	}
	if err != nil {
		writeMessage(w, http.StatusBadRequest, err.Error())
		return nil, false
	}
	return asked.PeerURLs, true
}

// bodyBytesMax is far more than anybody says about members.
const bodyBytesMax = 1 << 20

// checkURLs says what is wrong with addresses in the words of this API.
func checkURLs(texts []string) error {
	if len(texts) == 0 {
		return errors.New("no valid URLs given")
	}
	for _, text := range texts {
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil {
			return err
		}
		switch u.Scheme {
		case "http", "https":
			if _, _, err := net.SplitHostPort(u.Host); err != nil {
				return fmt.Errorf(`URL address does not have the form "host:port": %s`, text)
			}
			if u.Path != "" {
				return fmt.Errorf("URL must not contain a path: %s", text)
			}
		case "unix", "unixs":
		default:
			return fmt.Errorf("URL scheme must be http, https, unix, or unixs: %s", text)
		}
	}
	return nil
}

// machines answers with where clients can go.
func (h *Handler) machines(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet, http.MethodHead) {
		return
	}
	var urls []string
	for _, m := range h.backend.View().Members() {
		urls = append(urls, m.ClientURLs...)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, strings.Join(urls, ", "))
}

// writeJSON answers with a line.
func writeJSON(w http.ResponseWriter, status int, v any) {
	writeBody(w, status, append(marshal(v), '\n'))
}

// writeValue answers with what ends without a line.
func writeValue(w http.ResponseWriter, v any) { writeBody(w, http.StatusOK, marshal(v)) }

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("v2: encode %T: %v", v, err)) // it holds numbers, texts and times of this age
	}
	return b
}

// writeMessage answers with an error, as all but the keys tell them.
func writeMessage(w http.ResponseWriter, status int, text string) {
	b := append([]byte(`{"message":`), appendText(nil, text)...)
	writeBody(w, status, append(b, '}'))
}

func writeBody(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h["Content-Type"] = jsonType
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that hung up does not read it
}

var jsonType = []string{"application/json"}
