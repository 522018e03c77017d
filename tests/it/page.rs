//! The live page in a real browser. `make setup` installs one on Debian; without it these tests are skipped and say so.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::shared;
use crate::support::browser::{Browser, Look};
use crate::support::client::{Client, Reply};
use crate::support::http;
use crate::support::pgweir::{Options, Pgweir};

const ADMIN: &str = "admin-token-0123456789";
const STATS: &str = "stats-token-0123456789";

/// `None`, with the reason printed past the capture of test output, where there is no browser.
fn browser(look: &Look) -> Option<Browser> {
    match Browser::open(look) {
        Ok(browser) => Some(browser),
        Err(reason) => {
            let line = format!("skipped a test of the page: {reason}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
    }
}

/// The page is there and has heard from pgweir.
#[track_caller]
fn open(browser: &mut Browser, pgweir: &Pgweir) {
    browser.go(&format!("http://{}/", pgweir.http));
    await_news(browser);
}

#[track_caller]
fn await_news(browser: &mut Browser) {
    browser.wait(
        "the page to hear from pgweir",
        "return document.body.dataset.state === 'serving' && !document.querySelector('#pools-table .empty').textContent.startsWith('Loading')",
    );
}

#[track_caller]
fn assert_no_complaints(browser: &mut Browser) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

fn cell(reply: &Reply, row: usize, column: &str) -> String {
    let place = reply.columns.iter().position(|name| name == column);
    let place = place.unwrap_or_else(|| panic!("no column {column}"));
    reply.rows[row][place].clone().unwrap_or_default()
}

/// A statement's row on the page, once it shows that many calls.
#[track_caller]
fn statement_row(browser: &mut Browser, text: &str, calls: &str) -> Value {
    crate::support::wait::wait_for("the statement's row", || {
        browser
            .table("statements-table")
            .into_iter()
            .find(|row| row["Statement"] == text && row["Calls"] == calls)
    })
}

/// 40 statements, three that fail, a temporary table, an open transaction, and one that waits behind it.
async fn traffic(pgweir: &Pgweir) -> Vec<Client> {
    let (mut one, mut two) = (pgweir.client().await, pgweir.client().await);
    for number in 0..40 {
        one.query(&format!("SELECT {number} AS forty")).await.ok();
    }
    for _ in 0..3 {
        let failed = one.query("SELECT nothing FROM nowhere").await;
        assert_eq!(failed.error().code, "42P01");
    }
    two.query("CREATE TEMP TABLE kept (n int)").await.ok();
    one.query("BEGIN").await.ok();
    let mut three = pgweir.client().await;
    three
        .send(&crate::support::messages::query("SELECT 'queued'"))
        .await;
    vec![one, two, three]
}

#[tokio::test]
async fn the_page_shows_what_the_console_and_the_metrics_show() {
    let Some(mut browser) = browser(&Look::default()) else {
        return;
    };
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let _clients = traffic(&pgweir).await;
    open(&mut browser, &pgweir);
    let of_page = statement_row(&mut browser, "SELECT $1 AS forty", "40");
    let mut console = pgweir.console().await;
    let queries = console
        .query("SHOW QUERIES WHERE query = 'SELECT $1 AS forty'")
        .await
        .ok();
    assert_eq!(cell(&queries, 0, "calls"), of_page["Calls"]);
    assert_eq!(of_page["Rows a call"], "1");
    let failed = statement_row(&mut browser, "SELECT nothing FROM nowhere", "3");
    assert_eq!(failed["Errors"], "3");

    let pools = browser.table("pools-table");
    assert_eq!(pools.len(), 1, "{pools:?}");
    let shown = console.query("SHOW POOLS").await.ok();
    let (active, waiting) = (cell(&shown, 0, "cl_active"), cell(&shown, 0, "cl_waiting"));
    assert_eq!((active.as_str(), waiting.as_str()), ("2", "1"));
    assert_eq!(
        pools[0],
        json!({
            "Database and user": "postgres/postgres", "Clients": "3", "Waiting": "1",
            "Longest wait": pools[0]["Longest wait"], "Connections in use": "2 of 2", "Mode": "transaction",
            "Statements": pools[0]["Statements"], "Errors": pools[0]["Errors"],
            "p50": pools[0]["p50"], "p95": pools[0]["p95"],
        })
    );
    let labels = "{database=\"postgres\",user=\"postgres\",state=\"waiting\"}";
    let metric = pgweir.metric(&format!("pgweir_pool_clients{labels} "));
    assert_eq!(metric, Some(1.0));

    let pins = browser.table("pins-table");
    let pinned = console.query("SHOW PINS").await.ok();
    assert_eq!((pins.len(), pinned.rows.len()), (1, 1), "{pins:?}");
    assert_eq!(pins[0]["Why"], "temp table");
    assert_eq!(cell(&pinned, 0, "reasons"), "temp_table");
    assert_eq!(pins[0]["Through"], cell(&pinned, 0, "query"));
    let errors = browser.table("errors-table");
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert_eq!(errors[0]["Error"], "42P01 undefined table");

    let advice = browser.wait(
        "advice on the pool",
        "return [...document.querySelectorAll('#advice-list li')].map((item) => item.innerText)\
         .find((text) => text.includes('pool postgres/postgres'))",
    );
    let advice = advice.as_str().unwrap();
    assert!(advice.contains("1 client in the queue"), "{advice}");
    assert_no_complaints(&mut browser);
}

/// What is drawn, and not what is in the document only: a picture of many colours, none of which has it all.
#[tokio::test]
async fn a_picture_of_the_page_is_not_blank() {
    for dark in [false, true] {
        let look = Look {
            width: 640,
            height: 480,
            dark,
            ..Look::default()
        };
        let Some(mut browser) = browser(&look) else {
            return;
        };
        let pgweir = with_three_statements().await;
        open(&mut browser, &pgweir);
        statement_row(&mut browser, "SELECT $1 AS a", "9");
        let folder = tempfile::tempdir().unwrap();
        let (colours, commonest, ground) = browser.picture(&folder.path().join("page.png"));
        assert!(colours > 50, "{colours} colours");
        assert!((0.3..0.98).contains(&commonest), "{commonest}");
        let sides = if dark { 0..64 } else { 192..256 };
        assert!(ground.iter().all(|part| sides.contains(part)), "{ground:?}");
        assert_no_complaints(&mut browser);
    }
}

/// Three statements, run 9, 3 and 6 times.
async fn with_three_statements() -> Pgweir {
    let pgweir = Options::new(shared::server()).start();
    let mut client = pgweir.client().await;
    for (text, times) in [
        ("SELECT 1 AS a", 9),
        ("SELECT 1 AS b", 3),
        ("SELECT 1 AS c", 6),
    ] {
        for _ in 0..times {
            client.query(text).await.ok();
        }
    }
    pgweir
}

/// Calls of the statements listed, from above.
fn calls_listed(browser: &mut Browser) -> Vec<String> {
    let rows = browser.table("statements-table");
    rows.iter()
        .map(|row| row["Calls"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn tables_are_sorted_with_the_keyboard_alone() {
    let Some(mut browser) = browser(&Look::default()) else {
        return;
    };
    let pgweir = with_three_statements().await;
    open(&mut browser, &pgweir);
    statement_row(&mut browser, "SELECT $1 AS a", "9");
    // The skip link is the first stop, and leads past the navigation.
    browser.run("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')");
    browser.press(&["Tab"]);
    assert_eq!(
        browser.run("return document.activeElement.className"),
        "skip"
    );
    browser.press(&["Enter"]);
    assert_eq!(browser.run("return document.activeElement.id"), "main");
    let head = "[...document.querySelectorAll('#statements-table thead button')].find((one) => one.innerText.includes('Calls') && !one.innerText.includes('minute'))";
    // From the search field, tabs lead through the heads.
    browser.run("document.getElementById('search').focus()");
    browser.press(&["Tab", "Tab", "Tab", "Tab", "Tab"]);
    assert_eq!(
        browser.run(&format!("return document.activeElement === {head}")),
        true
    );
    let outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle");
    assert_eq!(outline, "solid", "the focus is seen");
    browser.press(&["Enter"]);
    assert_eq!(calls_listed(&mut browser), ["9", "6", "3"]);
    let sorted = format!("return {head}.closest('th').getAttribute('aria-sort')");
    assert_eq!(browser.run(&sorted), "descending");
    browser.press(&["Space"]);
    assert_eq!(calls_listed(&mut browser), ["3", "6", "9"]);
    assert_eq!(browser.run(&sorted), "ascending");

    assert_no_complaints(&mut browser);
}

#[tokio::test]
async fn a_statement_is_searched_opened_and_read_with_the_keyboard_alone() {
    let Some(mut browser) = browser(&Look::default()) else {
        return;
    };
    let pgweir = with_three_statements().await;
    open(&mut browser, &pgweir);
    statement_row(&mut browser, "SELECT $1 AS a", "9");
    browser.type_into("#search", "as C");
    assert_eq!(calls_listed(&mut browser), ["6"]);
    browser.run("document.querySelector('#statements-table tbody a').focus()");
    browser.press(&["Enter"]);
    browser.wait(
        "the statement's text",
        "return document.getElementById('one-text').innerText === 'SELECT $1 AS c'",
    );
    assert_eq!(browser.run("return document.activeElement.id"), "one-title");
    let calls = browser.wait(
        "its calls",
        "return document.querySelector('#one-facts dd span')?.textContent",
    );
    assert_eq!(calls, "6");
    // A plot is read with the arrow keys.
    browser.wait(
        "a histogram over time",
        "return document.querySelectorAll('#one-charts .heat rect').length > 0",
    );
    browser.run("document.querySelector('#one-charts .heat').focus()");
    browser.press(&["Left", "Left"]);
    let read =
        browser.run("return document.querySelector('#one-charts .heat text.cursor')?.textContent");
    assert!(
        read.as_str()
            .is_some_and(|text| text.contains("ago:") || text.contains("not watched")),
        "{read}"
    );
    let summary = browser
        .run("return document.querySelector('#one-charts .heat').getAttribute('aria-label')");
    assert!(
        summary.as_str().unwrap().contains("6 calls")
            || summary.as_str().unwrap().contains("6\u{a0}calls"),
        "{summary}"
    );
    browser.run("history.back()");
    browser.wait(
        "the overview",
        "return !document.getElementById('overview').hidden",
    );
    assert_no_complaints(&mut browser);
}

#[tokio::test]
async fn on_a_phone_nothing_scrolls_sideways_and_everything_has_a_name() {
    let Some(mut browser) = browser(&Look {
        width: 360,
        height: 740,
        dark: true,
        ..Look::default()
    }) else {
        return;
    };
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let _clients = traffic(&pgweir).await;
    open(&mut browser, &pgweir);
    statement_row(&mut browser, "SELECT $1 AS forty", "40");
    let sideways =
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(browser.run(sideways), 0);
    browser.resize(320, 740);
    browser.wait(
        "no scrolling at 320 pixels either",
        &format!("{sideways} === 0"),
    );
    browser.resize(360, 740);
    // The longest values there can be, at the least width; the page goes on with what it has in its cells.
    browser.resize(320, 740);
    let longest = "const cells = [...document.querySelectorAll('#statements-table td, #pools-table td')]; \
                   const kept = cells.map((cell) => [...cell.childNodes]); \
                   cells.forEach((cell) => { cell.textContent = '999\\u00a0ms, 99.9\\u00a0%'; }); \
                   const sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth; \
                   cells.forEach((cell, at) => cell.replaceChildren(...kept[at])); \
                   return [cells.length > 0, sideways];";
    assert_eq!(browser.run(longest), json!([true, 0]));
    browser.resize(360, 740);
    let dark = browser.run("return getComputedStyle(document.body).backgroundColor");
    assert_eq!(dark, "rgb(15, 19, 24)");
    browser.run("document.querySelector('#statements-table tbody a').click()");
    browser.wait(
        "the statement's page",
        "return !document.getElementById('one').hidden",
    );
    assert_eq!(browser.run(sideways), 0);
    let nameless = browser.run(
        "return [...document.querySelectorAll('button, a, input, select, [tabindex=\"0\"], svg')].filter((one) => \
         one.checkVisibility() && !(one.innerText || one.getAttribute('aria-label') || one.labels?.length \
         || one.getAttribute('aria-labelledby') || one.textContent)).map((one) => one.outerHTML.slice(0, 80))",
    );
    assert_eq!(nameless, json!([]));
    assert_no_complaints(&mut browser);
}

#[tokio::test]
async fn a_lost_connection_is_said_and_found_again() {
    let Some(mut browser) = browser(&Look::default()) else {
        return;
    };
    let pgweir = Options::new(shared::server()).start();
    open(&mut browser, &pgweir);
    let empty = browser.run("return [...document.querySelectorAll('.empty')].filter((one) => one.checkVisibility()).map((one) => one.textContent)");
    let empty = empty.to_string();
    for state in [
        "Nothing needs attention.",
        "No pool yet",
        "No session keeps",
        "Nothing waits for a lock.",
    ] {
        assert!(empty.contains(state), "{state} in {empty}");
    }
    assert!(!empty.contains("Loading"), "{empty}");
    // Stopped, not ended: the connection stays open and silent.
    pgweir.signal("STOP");
    let lost = browser.wait(
        "the page to notice",
        "return !document.getElementById('lost').hidden && document.getElementById('lost').textContent",
    );
    assert!(
        lost.as_str()
            .unwrap()
            .starts_with("No connection to pgweir since"),
        "{lost}"
    );
    pgweir.signal("CONT");
    await_news(&mut browser);
    assert_eq!(
        browser.run("return document.getElementById('lost').hidden"),
        true
    );
}

#[tokio::test]
async fn texts_are_shown_to_those_who_may_see_them_only() {
    let pgweir = Options::new(shared::server())
        .set("http.admin_token", ADMIN)
        .set("http.stats_token", STATS)
        .start();
    let mut client = pgweir.client().await;
    client.query("SELECT 'a' AS secret_name").await.ok();
    client
        .query("SELECT secret_column FROM secret_table")
        .await
        .error();
    client
        .query("CREATE TEMP TABLE secret_kept (n int)")
        .await
        .ok();
    for path in [
        "/api/now",
        "/api/queries",
        "/api/errors",
        "/api/pins",
        "/api/queries?search=secret",
    ] {
        let ask = |token: &str| {
            let authorization = format!("Bearer {token}");
            http::get(pgweir.http, path, &[("Authorization", &authorization)]).body
        };
        assert!(ask(ADMIN).contains("secret_"), "{path}");
        assert!(!ask(STATS).contains("secret_"), "{path}: {}", ask(STATS));
        assert!(
            !ask(STATS).contains("127.0.0.1:"),
            "{path}: addresses of clients"
        );
    }
    let Some(mut browser) = browser(&Look {
        headers: vec![("Authorization".to_owned(), format!("Bearer {STATS}"))],
        ..Look::default()
    }) else {
        return;
    };
    open(&mut browser, &pgweir);
    browser.wait(
        "a list of statements",
        "return document.querySelectorAll('#statements-table tbody tr').length >= 3",
    );
    let page = browser.run("return document.documentElement.outerHTML");
    assert!(!page.as_str().unwrap().contains("secret_"));
    assert_no_complaints(&mut browser);
}
