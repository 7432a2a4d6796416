package v2

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
)

// auth answers /v2/auth/rest as a cluster does that has no users of this API
// and never will: those who have a name here are the users of v3.
func (h *Handler) auth(w http.ResponseWriter, r *http.Request, rest string) {
	place, name, _ := strings.Cut(rest, "/")
	switch {
	case rest == "enable":
		h.authSwitch(w, r)
	case place != "users" && place != "roles":
		http.NotFound(w, r)
	case strings.Contains(name, "/"):
		writeMessage(w, http.StatusBadRequest, "Invalid path")
	case name == "":
		if !allow(w, r, http.MethodGet) {
			return
		}
		h.clusterHeader(w.Header())
		if place == "users" {
			writeJSON(w, http.StatusOK, struct {
				Users []string `json:"users"`
			}{})
		} else {
			writeJSON(w, http.StatusOK, map[string]any{"roles": []role{rootRole}})
		}
	default:
		if !allow(w, r, http.MethodGet, http.MethodPut, http.MethodDelete) {
			return
		}
		h.clusterHeader(w.Header())
		if place == "users" {
			h.user(w, r, name)
		} else {
			h.role(w, r, name)
		}
	}
}

func (h *Handler) authSwitch(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet, http.MethodPut, http.MethodDelete) {
		return
	}
	h.clusterHeader(w.Header())
	switch r.Method {
	case http.MethodGet:
		writeJSON(w, http.StatusOK, map[string]bool{"enabled": false})
	case http.MethodPut:
		writeMessage(w, http.StatusConflict, "auth: No root user available, please create one")
	default:
		writeMessage(w, http.StatusConflict, "auth: already disabled")
	}
}

// noUsers is why nobody can be made known here.
const noUsers = "auth: users and roles are kept by the v3 API"

func (h *Handler) user(w http.ResponseWriter, r *http.Request, name string) {
	switch r.Method {
	case http.MethodGet:
		writeMessage(w, http.StatusNotFound, "auth: User "+name+" does not exist.")
		return
	case http.MethodDelete:
		writeMessage(w, http.StatusNotFound, "auth: User "+name+" does not exist")
		return
	}
	var asked struct {
		User          string          `json:"user"`
		Password      string          `json:"password"`
		Roles         json.RawMessage `json:"roles"`
		Grant, Revoke json.RawMessage
	}
	if !readJSON(w, r, &asked) {
		return
	}
	changes := asked.Grant != nil || asked.Revoke != nil
	switch {
	case asked.User != name:
		writeMessage(w, http.StatusBadRequest, "User JSON name does not match the name in the URL")
	case changes && asked.Roles != nil:
		writeMessage(w, http.StatusBadRequest, "User JSON contains both roles and grant/revoke")
	case changes:
		writeMessage(w, http.StatusNotFound, "auth: User "+name+" does not exist.")
	case asked.Password == "":
		writeMessage(w, http.StatusBadRequest, "auth: Cannot create user "+name+" with an empty password")
	default:
		writeMessage(w, http.StatusNotImplemented, noUsers)
	}
}

// role may do something. There is but the one that may do everything.
type role struct {
	Role        string `json:"role"`
	Permissions struct {
		KV struct {
			Read  []string `json:"read"`
			Write []string `json:"write"`
		} `json:"kv"`
	} `json:"permissions"`
}

var rootRole = func() (r role) {
	r.Role = "root"
	r.Permissions.KV.Read, r.Permissions.KV.Write = []string{"/*"}, []string{"/*"}
	return r
}()

func (h *Handler) role(w http.ResponseWriter, r *http.Request, name string) {
	switch {
	case r.Method == http.MethodGet && name == rootRole.Role:
		writeJSON(w, http.StatusOK, rootRole)
		return
	case r.Method == http.MethodGet:
		writeMessage(w, http.StatusNotFound, "auth: Role "+name+" does not exist.")
		return
	case r.Method == http.MethodDelete && name != rootRole.Role:
		writeMessage(w, http.StatusNotFound, "auth: Role "+name+" doesn't exist.")
		return
	}
	var asked struct {
		Role          string          `json:"role"`
		Permissions   json.RawMessage `json:"permissions"`
		Grant, Revoke json.RawMessage
	}
	if r.Method == http.MethodPut && !readJSON(w, r, &asked) {
		return
	}
	changes := asked.Grant != nil || asked.Revoke != nil
	switch {
	case r.Method == http.MethodPut && asked.Role != name:
		writeMessage(w, http.StatusBadRequest, "Role JSON name does not match the name in the URL")
	case changes && asked.Permissions != nil:
		writeMessage(w, http.StatusBadRequest, "Role JSON contains both permissions and grant/revoke")
	case name == rootRole.Role:
		writeMessage(w, http.StatusForbidden, "auth: Cannot modify role root: is root role.")
	case changes:
		writeMessage(w, http.StatusNotFound, "auth: Role "+name+" does not exist.")
	default:
		writeMessage(w, http.StatusNotImplemented, noUsers)
	}
}

// readJSON reads a body into v, or answers that it is none.
func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	if err == nil {
		err = json.Unmarshal(body, v)
	}
	if err != nil {
		writeMessage(w, http.StatusBadRequest, "Invalid JSON in request body.")
	}
	return err == nil
}
