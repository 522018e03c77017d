// What an application does with Go's database/sql and lib/pq, checked. Usage: go run smoke_go.go DSN
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/lib/pq"
)

const connections = 20

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func check(ok bool, format string, args ...any) {
	if !ok {
		panic(fmt.Sprintf(format, args...))
	}
}

func one[T any](row *sql.Row) T {
	var value T
	must(row.Scan(&value))
	return value
}

func fails(err error, code string) {
	var failure *pq.Error
	check(errors.As(err, &failure) && string(failure.Code) == code, "expected %s, got %v", code, err)
}

func transactions(db *sql.DB) {
	tx, err := db.Begin()
	must(err)
	_, err = tx.Exec("INSERT INTO wallets VALUES ($1, $2), ($3, $4)", 1, 100, 2, 0)
	must(err)
	must(tx.Commit())
	tx, err = db.Begin()
	must(err)
	_, err = tx.Exec("UPDATE wallets SET amount = amount - 50 WHERE id = $1", 1)
	must(err)
	must(tx.Rollback())
	amount := one[int](db.QueryRow("SELECT amount FROM wallets WHERE id = 1"))
	check(amount == 100, "amount is %d", amount)
}

func preparedStatements(db *sql.DB) {
	next, err := db.Prepare("SELECT $1::int + 1")
	must(err)
	for value := 0; value < 10; value++ {
		got := one[int](next.QueryRow(value))
		check(got == value+1, "%d after %d", got, value)
	}
	must(next.Close())
}

func copyIn(db *sql.DB) {
	tx, err := db.Begin()
	must(err)
	into, err := tx.Prepare(pq.CopyIn("wallets", "id", "amount"))
	must(err)
	for id := 1000; id < 2000; id++ {
		_, err = into.Exec(id, id)
		must(err)
	}
	_, err = into.Exec()
	must(err)
	must(into.Close())
	must(tx.Commit())
	count := one[int](db.QueryRow("SELECT count(*) FROM wallets WHERE id >= 1000"))
	check(count == 1000, "%d rows copied", count)
}

func failures(db *sql.DB) {
	_, err := db.Exec("SELECT 1/0")
	fails(err, "22012")
	_, err = db.Exec("INSERT INTO wallets VALUES ($1, $2)", 1, 1)
	fails(err, "23505")
	check(one[int](db.QueryRow("SELECT 1")) == 1, "not usable after errors")
}

func cancel(db *sql.DB) {
	limited, stop := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer stop()
	begun := time.Now()
	_, err := db.ExecContext(limited, "SELECT pg_sleep(64)")
	check(err != nil && time.Since(begun) < 30*time.Second, "not cancelled: %v", err)
	check(one[int](db.QueryRow("SELECT 2")) == 2, "not usable after a cancel request")
}

func notifications(db *sql.DB, dsn string) {
	listener := pq.NewListener(dsn, 10*time.Millisecond, time.Second, nil)
	must(listener.Listen("news_go"))
	_, err := db.Exec("SELECT pg_notify('news_go', 'hello')")
	must(err)
	select {
	case heard := <-listener.Notify:
		check(heard != nil && heard.Channel == "news_go" && heard.Extra == "hello", "heard %v", heard)
	case <-time.After(30 * time.Second):
		panic("no notification")
	}
	must(listener.Close())
}

func manyConnections(db *sql.DB) {
	db.SetMaxOpenConns(connections)
	var all sync.WaitGroup
	for number := 0; number < connections*20; number++ {
		all.Add(1)
		go func(token string) {
			defer all.Done()
			got := one[string](db.QueryRow("SELECT $1::text", token))
			check(got == token, "%s is not %s", got, token)
		}(fmt.Sprintf("token %d", number))
	}
	all.Wait()
}

func main() {
	dsn := os.Args[1]
	db, err := sql.Open("postgres", dsn)
	must(err)
	_, err = db.Exec("CREATE TABLE wallets (id int PRIMARY KEY, amount int NOT NULL)")
	must(err)
	transactions(db)
	preparedStatements(db)
	copyIn(db)
	failures(db)
	cancel(db)
	notifications(db, dsn)
	manyConnections(db)
	must(db.Close())
	fmt.Printf("lib/pq: all passed, %d connections at once\n", connections)
}
