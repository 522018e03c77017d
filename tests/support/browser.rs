//! A headless Chromium on the page, driven through `tests/drivers/browse.py`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use super::wait::wait_for;

/// How the browser is to be.
#[derive(Clone, Debug)]
pub struct Look {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
    /// Sent with every request.
    pub headers: Vec<(String, String)>,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            width: 1280,
            height: 900,
            dark: false,
            headers: Vec::new(),
        }
    }
}

/// See the module. Dropping it ends the browser.
pub struct Browser {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Browser {
    /// `Err` with the reason where there is no browser, or no Python to drive it.
    pub fn open(look: &Look) -> Result<Self, String> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers/browse.py");
        let mut process = Command::new("python3")
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("no python3: {error}"))?;
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut browser = Self {
            process,
            orders,
            answers,
        };
        let headers: serde_json::Map<String, Value> = look
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        let answer = browser.ask(&json!({
            "width": look.width, "height": look.height, "dark": look.dark, "headers": headers,
        }));
        match answer["missing"].as_str() {
            Some(reason) => Err(reason.to_owned()),
            None => Ok(browser),
        }
    }

    #[track_caller]
    fn ask(&mut self, order: &Value) -> Value {
        let orders = self.orders.as_mut().expect("it is open until dropped");
        writeln!(orders, "{order}").expect("the browser's driver listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no answer to {order}"))
    }

    #[track_caller]
    fn order(&mut self, order: &Value) -> Value {
        let answer = self.ask(order);
        assert!(answer["error"].is_null(), "{order}: {answer}");
        answer["value"].clone()
    }

    #[track_caller]
    pub fn go(&mut self, url: &str) {
        self.order(&json!({ "go": url }));
    }

    /// What a script `return`s.
    #[track_caller]
    pub fn run(&mut self, script: &str) -> Value {
        self.order(&json!({ "run": script }))
    }

    /// Waits until a script returns something that is true, and returns it.
    #[track_caller]
    pub fn wait(&mut self, what: &str, script: &str) -> Value {
        wait_for(what, || {
            let value = self.run(script);
            let holds = !matches!(&value, Value::Null | Value::Bool(false)) && value != json!("");
            holds.then_some(value)
        })
    }

    /// Presses keys, by character or name, wherever the focus is.
    #[track_caller]
    pub fn press(&mut self, keys: &[&str]) {
        self.order(&json!({ "press": keys }));
    }

    #[track_caller]
    pub fn type_into(&mut self, selector: &str, text: &str) {
        self.order(&json!({ "type": [selector, text] }));
    }

    #[track_caller]
    pub fn resize(&mut self, width: u32, height: u32) {
        self.order(&json!({ "size": [width, height] }));
    }

    /// Takes a picture: how many colours it has, the share of the commonest, and its red, green and blue.
    #[track_caller]
    pub fn picture(&mut self, path: &Path) -> (u64, f64, Vec<u64>) {
        self.order(&json!({ "shot": path }));
        let said = self.order(&json!({ "colours": path }));
        let ground = said["commonest"].as_array().unwrap().iter();
        (
            said["count"].as_u64().unwrap(),
            said["share"].as_f64().unwrap(),
            ground.map(|part| part.as_u64().unwrap()).collect(),
        )
    }

    /// What the browser has complained about since the last time.
    #[track_caller]
    pub fn complaints(&mut self) -> Vec<Value> {
        let entries = self.order(&json!({ "console": true }));
        entries.as_array().cloned().unwrap_or_default()
    }

    /// Rows of the table in `#id`, as texts by column.
    #[track_caller]
    pub fn table(&mut self, id: &str) -> Vec<Value> {
        let rows = self.run(&format!(
            "return [...document.querySelectorAll('#{id} tbody tr')].map((row) => Object.fromEntries(\
             [...row.children].map((cell) => [cell.dataset.label, cell.textContent.replaceAll('\\u00a0', ' ')])))"
        ));
        rows.as_array().cloned().unwrap_or_default()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser at the end of its input.
        drop(self.orders.take());
        let _ = self.process.wait();
    }
}
