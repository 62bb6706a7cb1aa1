// Reads a log over HTTP with the code of Go's checksum database: main URL VERIFIER-KEY.
// It checks the checkpoint's signature, the root, the inclusion of every entry, and consistency with every smaller tree.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func get(url string) []byte {
	answer, err := http.Get(url)
	check(err)
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	check(err)
	if answer.StatusCode != 200 {
		check(fmt.Errorf("%s: %s", url, answer.Status))
	}
	return data
}

type reader string

func (r reader) Height() int { return 8 }

func (r reader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		found = append(found, get(string(r)+strings.Replace(tile.Path(), "tile/8/", "tile/", 1)))
	}
	return found, nil
}

func (r reader) SaveTiles(tiles []tlog.Tile, data [][]byte) {}

func main() {
	url := os.Args[1]
	verifier, err := note.NewVerifier(os.Args[2])
	check(err)
	signed, err := note.Open(get(url+"checkpoint"), note.VerifierList(verifier))
	check(err)
	lines := strings.Split(signed.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	raw, err := base64.StdEncoding.DecodeString(lines[2])
	check(err)
	var root tlog.Hash
	copy(root[:], raw)

	hashes := tlog.TileHashReader(tlog.Tree{N: size, Hash: root}, reader(url))
	computed, err := tlog.TreeHash(size, hashes)
	check(err)
	if computed != root {
		check(fmt.Errorf("another root"))
	}
	var entries [][]byte
	for n := int64(0); n*256 < size; n++ {
		path := tlog.Tile{H: 8, L: 0, N: n, W: int(min(256, size-n*256))}.Path()
		bundle := bytes.NewReader(get(url + strings.Replace(path, "tile/8/0/", "tile/entries/", 1)))
		for bundle.Len() > 0 {
			var length uint16
			check(binary.Read(bundle, binary.BigEndian, &length))
			entry := make([]byte, length)
			_, err := io.ReadFull(bundle, entry)
			check(err)
			entries = append(entries, entry)
		}
	}
	if int64(len(entries)) != size {
		check(fmt.Errorf("%d entries, not %d", len(entries), size))
	}
	for n, entry := range entries {
		proof, err := tlog.ProveRecord(size, int64(n), hashes)
		check(err)
		check(tlog.CheckRecord(proof, size, root, int64(n), tlog.RecordHash(entry)))
	}
	for n := int64(1); n <= size; n += 7 {
		before, err := tlog.TreeHash(n, hashes)
		check(err)
		proof, err := tlog.ProveTree(size, n, hashes)
		check(err)
		check(tlog.CheckTree(proof, size, root, n, before))
	}
	fmt.Printf("%s %d entries\n", lines[0], size)
}

func min(a, b int64) int64 {
	if a < b {
		return a
	}
	return b
}
