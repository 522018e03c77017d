//! Prepared statements, of the protocol and of SQL: global ones shared by content, and the names one session gives them.
//!
//! As in PostgreSQL both kinds have the same names: SQL's EXECUTE finds what a Parse made, and Bind what PREPARE made.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use std::collections::VecDeque;

use hashbrown::{HashMap, HashTable};

use super::shape::Shape;

/// Global statements kept although no client names them.
const UNUSED_MAX: usize = 2_000;

/// A name, and what it stands for once its change is confirmed.
pub type Unsettled<T> = (Box<[u8]>, Option<Named<T>>);

/// Names one session may hold; a session past it gets an error instead of more of pgweir's memory.
pub const NAMES_MAX: usize = 65_536;

/// Behind the name of a client that guesses at global ones: no statement has such a name.
pub const DISOWNED: &[u8] = b" ";

/// Prefix of the names statements have on servers.
pub const SERVER_NAME_PREFIX: &[u8] = b"pgweir_";

/// A statement as it is prepared on servers. Two sessions that parse the same text with the same parameter types
/// and the same [`Meaning`] share it.
#[derive(Debug)]
pub struct Statement<T> {
    pub id: u64,
    /// Its name on servers.
    pub name: Box<[u8]>,
    /// Text, NUL, count and types, as in the Parse message; of SQL's PREPARE the whole text without the name.
    pub body: Box<[u8]>,
    /// Where in `body` the name belongs, if SQL prepared it.
    pub name_at: Option<usize>,
    /// The session's settings when it was parsed that decide what a text means, if it had set any. See
    /// `Settings::analysis`.
    pub settings: Option<Box<[u8]>>,
    /// Those that the server reports, whoever set them.
    pub reading: Arc<[u8]>,
    /// What is known of its text.
    pub known: T,
}

impl<T> Statement<T> {
    /// SQL's PREPARE of this statement as `name`, if it is one of SQL's.
    pub fn prepare_text(&self, name: &[u8]) -> Option<Vec<u8>> {
        let (before, behind) = self.body.split_at_checked(self.name_at?)?;
        Some([before, name, behind].concat())
    }

    /// Its text, of SQL's PREPARE all but the name.
    pub fn text(&self) -> &[u8] {
        self.body
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
    }
}

/// What a text means besides itself: the settings by which it is analysed.
#[derive(Clone, Debug)]
pub struct Meaning<'a> {
    /// See `Settings::analysis`.
    pub settings: Option<&'a [u8]>,
    /// See `mirror::Reported::reading`. Empty: whatever they are, the text means the same. Of a text that shares its
    /// meaning with none, [`Global::apart`].
    pub reading: Arc<[u8]>,
}

/// All statements by content.
#[derive(Debug)]
pub struct Global<T> {
    table: Mutex<Table<T>>,
    hasher: foldhash::fast::RandomState,
    next_id: AtomicU64,
}

#[derive(Debug)]
struct Table<T> {
    statements: HashTable<Arc<Statement<T>>>,
    /// At how many those that nobody names are thrown out.
    sweep_at: usize,
}

impl<T> Table<T> {
    fn sweep(&mut self) {
        self.statements
            .retain(|statement| Arc::strong_count(statement) > 1);
        self.sweep_at = self.statements.len() * 2 + UNUSED_MAX;
    }
}

impl<T> Default for Global<T> {
    fn default() -> Self {
        let table = Table {
            statements: HashTable::new(),
            sweep_at: UNUSED_MAX,
        };
        Self {
            table: Mutex::new(table),
            hasher: foldhash::fast::RandomState::default(),
            next_id: AtomicU64::new(1),
        }
    }
}

impl<T> Global<T> {
    /// What no other statement is read by. (It names no setting: it has no NUL.)
    pub fn apart(&self) -> Arc<[u8]> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        format!("apart {id}").into_bytes().into()
    }

    /// The statement with this `body` and this `meaning`; `known` is asked when it is new. (The body of a Parse has
    /// zeros in it and SQL has none, so the two kinds are never taken for one another.)
    pub fn intern(
        &self,
        body: &[u8],
        name_at: Option<usize>,
        meaning: Meaning<'_>,
        known: impl FnOnce() -> T,
    ) -> Arc<Statement<T>> {
        let Meaning { settings, reading } = meaning;
        let hash = self.hasher.hash_one((body, settings, &reading[..]));
        let is_it = |s: &Arc<Statement<T>>| {
            s.body.as_ref() == body
                && s.name_at == name_at
                && s.settings.as_deref() == settings
                && (Arc::ptr_eq(&s.reading, &reading) || s.reading == reading)
        };
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statement) = table.statements.find(hash, is_it) {
            return Arc::clone(statement);
        }
        if table.statements.len() >= table.sweep_at {
            table.sweep();
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let name = [SERVER_NAME_PREFIX, id.to_string().as_bytes()]
            .concat()
            .into_boxed_slice();
        let statement = Arc::new(Statement {
            id,
            name,
            body: body.into(),
            name_at,
            settings: settings.map(Into::into),
            reading,
            known: known(),
        });
        let rehash = |s: &Arc<Statement<T>>| {
            self.hasher
                .hash_one((s.body.as_ref(), s.settings.as_deref(), &s.reading[..]))
        };
        table
            .statements
            .insert_unique(hash, Arc::clone(&statement), rehash);
        statement
    }

    pub fn len(&self) -> usize {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .statements
            .len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a session's name stands for.
#[derive(Debug)]
pub struct Named<T> {
    pub statement: Arc<Statement<T>>,
    /// What the client was told of it.
    pub shape: Arc<Shape>,
    /// The backend that knows it by this name, and not by its global one; 0 for none.
    pub own_on: u64,
    /// The name as the client spelled it to SQL's PREPARE.
    pub spelled: Option<Box<[u8]>>,
}

impl<T> Named<T> {
    pub fn new(statement: Arc<Statement<T>>, shape: Arc<Shape>) -> Self {
        Self {
            statement,
            shape,
            own_on: 0,
            spelled: None,
        }
    }
}

impl<T> Clone for Named<T> {
    fn clone(&self) -> Self {
        Self {
            statement: Arc::clone(&self.statement),
            shape: Arc::clone(&self.shape),
            own_on: self.own_on,
            spelled: self.spelled.clone(),
        }
    }
}

type NameMap<T> = HashMap<Box<[u8]>, Named<T>>;

/// The names of one session. The empty name is the unnamed statement.
#[derive(Debug)]
pub struct Names<T> {
    /// Boxed: most sessions of most applications have none.
    named: Option<Box<NameMap<T>>>,
    unnamed: Option<Named<T>>,
    /// What `DEALLOCATE ALL` took away in the transaction under way: errors behind it still name it.
    retired: Option<Box<NameMap<T>>>,
    /// Changes the server has not confirmed yet, oldest first.
    unconfirmed: VecDeque<Change<T>>,
    /// Which exchange is being sent.
    exchange: u64,
    /// See [`Self::own_for_good`].
    is_own: bool,
}

#[derive(Debug)]
struct Change<T> {
    name: Box<[u8]>,
    before: Option<Named<T>>,
    exchange: u64,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self {
            named: None,
            unnamed: None,
            retired: None,
            unconfirmed: VecDeque::new(),
            exchange: 0,
            is_own: false,
        }
    }
}

impl<T> Names<T> {
    pub fn get(&self, name: &[u8]) -> Option<&Named<T>> {
        if name.is_empty() {
            self.unnamed.as_ref()
        } else {
            self.named.as_ref()?.get(name)
        }
    }

    /// From now on the client knows the statement `name` by `shape`.
    pub fn tell(&mut self, name: &[u8], shape: &Arc<Shape>) {
        let named = if name.is_empty() {
            self.unnamed.as_mut()
        } else {
            self.named.as_mut().and_then(|all| all.get_mut(name))
        };
        if let Some(named) = named.filter(|named| !Arc::ptr_eq(&named.shape, shape)) {
            named.shape = Arc::clone(shape);
        }
    }

    /// The backend with number `id` knows the statement `name` by that name.
    pub fn own(&mut self, name: &[u8], id: u64) {
        if let Some(named) = self.named.as_mut().and_then(|all| all.get_mut(name)) {
            named.own_on = id;
        }
    }

    /// No backend knows the client's names any more, or they may not be there. Returns those it was thought to know,
    /// of names under change as well.
    pub fn own_none(&mut self) -> Vec<Box<[u8]>> {
        let all = self.named.iter_mut().flat_map(|all| all.iter_mut());
        let changed = self.unconfirmed.iter_mut();
        let changed = changed.filter_map(|change| Some((&change.name, change.before.as_mut()?)));
        all.chain(changed)
            .filter_map(|(name, named)| {
                let was_own = std::mem::take(&mut named.own_on) != 0;
                was_own.then(|| name.clone())
            })
            .collect()
    }

    /// The backend changes what names mean, unseen: they are its affair until all are gone.
    pub fn own_for_good(&mut self) {
        self.is_own = true;
    }

    /// Whether only the backend knows what names mean.
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    /// How many that SQL has prepared the backend with number `id` knows by their own names.
    pub fn own_sql(&self, id: u64) -> usize {
        let is_it = |named: &Named<T>| named.spelled.is_some() && named.own_on == id;
        self.iter().filter(|(_, named)| is_it(named)).count()
    }

    /// Every name but the empty one, with what it stands for.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Named<T>)> {
        let all = self.named.iter().flat_map(|all| all.iter());
        all.map(|(name, named)| (name.as_ref(), named))
    }

    pub fn len(&self) -> usize {
        self.named.as_ref().map_or(0, |names| names.len())
    }

    /// The text whose Parse the server answers next.
    pub fn under_way(&self) -> Option<&T> {
        let named = self.get(&self.unconfirmed.front()?.name)?;
        Some(&named.statement.known)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.unnamed.is_none()
    }

    fn put(&mut self, name: &[u8], statement: Option<Named<T>>) -> Option<Named<T>> {
        if name.is_empty() {
            return std::mem::replace(&mut self.unnamed, statement);
        }
        match statement {
            Some(statement) => self
                .named
                .get_or_insert_default()
                .insert(name.into(), statement),
            None => self.named.as_mut()?.remove(name),
        }
    }

    /// A Parse (`Some`) or Close (`None`) of `name` was sent; the next [`Self::confirm`] or [`Self::undo`] settles it.
    pub fn change(&mut self, name: &[u8], statement: Option<Named<T>>) {
        let before = self.put(name, statement);
        self.unconfirmed.push_back(Change {
            name: name.into(),
            before,
            exchange: self.exchange,
        });
    }

    /// What follows belongs to another exchange: an error in this one does not undo it.
    pub fn next_exchange(&mut self) {
        self.exchange += 1;
    }

    /// Whether the server has confirmed all changes.
    pub fn is_settled(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// Whether the exchange being sent has changed `name`.
    pub fn is_changed_now(&self, name: &[u8]) -> bool {
        self.last_change(name)
            .is_some_and(|change| change.exchange == self.exchange)
    }

    fn last_change(&self, name: &[u8]) -> Option<&Change<T>> {
        let mut changes = self.unconfirmed.iter().rev();
        changes.find(|change| change.name.as_ref() == name)
    }

    /// Whether what `name` means depends on the outcome of an earlier exchange. (What it means within the same one does
    /// not: if the change fails, so does what follows.)
    pub fn is_uncertain(&self, name: &[u8]) -> bool {
        self.last_change(name)
            .is_some_and(|change| change.exchange != self.exchange)
    }

    /// The server (or pgweir in its place) confirmed the oldest change.
    pub fn confirm(&mut self) {
        self.unconfirmed.pop_front();
        if self.unconfirmed.is_empty() {
            // A connection at rest holds no buffer.
            self.unconfirmed = VecDeque::new();
        }
    }

    /// The oldest change, if it is a Parse of the unnamed statement, failed: the server has dropped the one before it.
    pub fn fail_unnamed(&mut self) {
        if let Some(change) = self
            .unconfirmed
            .front_mut()
            .filter(|change| change.name.is_empty())
        {
            change.before = None;
        }
    }

    /// Names whose change is not confirmed, and what they stand for once it is.
    pub fn unsettled(&self) -> Vec<Unsettled<T>>
    where
        T: Clone,
    {
        let names = self.unconfirmed.iter().map(|change| change.name.clone());
        names
            .map(|name| {
                let named = self.get(&name).cloned();
                (name, named)
            })
            .collect()
    }

    /// The server skipped the oldest change after an error: it did not happen. Later ones stand.
    pub fn undo(&mut self) {
        let Some(change) = self.unconfirmed.pop_front() else {
            return;
        };
        // A later change of the same name holds what it found, which now is what stood before.
        let mut later = self.unconfirmed.iter_mut();
        if let Some(later) = later.find(|later| later.name == change.name) {
            later.before = change.before;
        } else {
            self.put(&change.name, change.before);
        }
    }

    /// `text` of the server with a statement's global name in it, in the words of this session; `None` if there is none
    /// of its statements in it.
    pub fn in_own_words(&self, text: &[u8]) -> Option<Vec<u8>> {
        let prefix = [b"\"", SERVER_NAME_PREFIX].concat();
        let start = memchr::memmem::find(text, &prefix)? + 1;
        let end = start + memchr::memchr(b'"', &text[start..])?;
        if text[start..end].ends_with(DISOWNED) {
            return Some([&text[..end - DISOWNED.len()], &text[end..]].concat());
        }
        let is_it = |statement: &Statement<T>| *statement.name == text[start..end];
        // What is behind the error and skipped for it has not been undone yet.
        let changed = self.unconfirmed.iter().find_map(|change| {
            let before = change.before.as_ref()?;
            (is_it(&before.statement) && !change.name.is_empty()).then_some(&change.name)
        });
        let name = changed.or_else(|| {
            let maps = [&self.named, &self.retired];
            let mut named = maps.into_iter().flatten().flat_map(|map| map.iter());
            named.find_map(|(name, named)| is_it(&named.statement).then_some(name))
        })?;
        Some([&text[..start], name, &text[end..]].concat())
    }

    /// The transaction is over, and no error of it can come any more.
    pub fn forget_retired(&mut self) {
        self.retired = None;
    }

    /// A simple query destroys the unnamed statement.
    pub fn forget_unnamed(&mut self) {
        self.unnamed = None;
        // Nor does it come back where one parsed since turns out to have been skipped.
        for change in &mut self.unconfirmed {
            if change.name.is_empty() {
                change.before = None;
            }
        }
    }

    /// `DEALLOCATE ALL` or `DISCARD ALL` succeeded: the named ones are gone, save those parsed behind it.
    pub fn forget_all(&mut self) {
        self.is_own = false;
        self.retired.clone_from(&self.named);
        let mut named = NameMap::default();
        for change in &mut self.unconfirmed {
            if !change.name.is_empty() {
                change.before = None;
                if let Some(kept) = self.named.as_ref().and_then(|all| all.get(&change.name)) {
                    named.insert(change.name.clone(), kept.clone());
                }
            }
        }
        self.named = (!named.is_empty()).then(|| Box::new(named));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn under<'a>(settings: Option<&'a [u8]>, reading: &[u8]) -> Meaning<'a> {
        let reading = reading.into();
        Meaning { settings, reading }
    }

    fn statement(global: &Global<()>, text: &str) -> Arc<Statement<()>> {
        let body = format!("{text}\0\0\0");
        global.intern(body.as_bytes(), None, under(None, b""), || ())
    }

    fn named(global: &Global<()>, text: &str) -> Named<()> {
        Named::new(statement(global, text), Arc::default())
    }

    #[test]
    fn equal_content_is_one_statement_and_what_it_is_read_by_is_content() {
        let global = Global::default();
        let a = statement(&global, "select 1");
        assert!(Arc::ptr_eq(&a, &statement(&global, "select 1")));
        let intern =
            |meaning: &Meaning<'_>| global.intern(b"select 1\0\0\0", None, meaning.clone(), || ());
        let others = [
            under(Some(b"search_path\0tenant\0"), b""),
            under(None, b"TimeZone\0CET\0"),
            under(None, &global.apart()),
            under(None, &global.apart()),
        ];
        let mut ids: Vec<_> = others.iter().map(|other| intern(other).id).collect();
        ids.push(a.id);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 5);
        assert_eq!(intern(&others[1]).id, intern(&others[1]).id);
        assert_eq!(a.name.as_ref(), format!("pgweir_{}", a.id).as_bytes());
    }

    #[test]
    fn a_statement_of_sql_is_the_same_under_any_name() {
        let global = Global::default();
        let (at, body) = (8, b"PREPARE  AS SELECT 1");
        let intern = || global.intern(body, Some(at), under(None, b""), || ());
        let a = intern();
        assert!(Arc::ptr_eq(&a, &intern()));
        let text = a.prepare_text(b"p").unwrap();
        assert_eq!(text, b"PREPARE p AS SELECT 1");
        assert_eq!(statement(&global, "x").prepare_text(b"p"), None);
    }

    #[test]
    fn statements_nobody_names_do_not_pile_up() {
        let global = Global::default();
        for n in 0..50_000 {
            statement(&global, &n.to_string());
        }
        assert!(global.len() < 2 * UNUSED_MAX, "{} statements", global.len());
    }

    #[test]
    fn a_failed_parse_leaves_no_name_behind() {
        let global = Global::default();
        let mut names = Names::default();
        names.change(b"a", Some(named(&global, "1")));
        names.confirm();
        names.change(b"a", None);
        names.change(b"a", Some(named(&global, "2")));
        names.change(b"b", Some(named(&global, "3")));
        for _ in 0..3 {
            names.undo();
        }
        assert_eq!(names.get(b"a").unwrap().statement.body.as_ref(), b"1\0\0\0");
        assert!(names.get(b"b").is_none());
    }

    #[test]
    fn a_failed_parse_of_the_unnamed_statement_leaves_none() {
        let global = Global::default();
        let mut names = Names::default();
        names.change(b"", Some(named(&global, "1")));
        names.confirm();
        names.change(b"", Some(named(&global, "2")));
        names.fail_unnamed();
        names.undo();
        assert!(names.get(b"").is_none());
    }

    #[test]
    fn a_name_is_uncertain_while_another_exchange_may_change_it() {
        let global = Global::default();
        let mut names = Names::default();
        names.change(b"a", Some(named(&global, "1")));
        assert!(!names.is_uncertain(b"a"));
        names.next_exchange();
        assert!(names.is_uncertain(b"a") && !names.is_uncertain(b"b"));
        names.change(b"a", None);
        assert!(!names.is_uncertain(b"a"));
        names.next_exchange();
        names.confirm();
        names.confirm();
        assert!(!names.is_uncertain(b"a"));
    }

    #[test]
    fn a_servers_words_are_put_into_the_sessions() {
        let global = Global::default();
        let mut names = Names::default();
        let one = named(&global, "1");
        names.change(b"mine", Some(one.clone()));
        let text = format!("statement \"pgweir_{}\" is\0", one.statement.id);
        assert_eq!(
            names.in_own_words(text.as_bytes()),
            Some(b"statement \"mine\" is\0".to_vec())
        );
        assert_eq!(names.in_own_words(b"statement \"pgweir_77\" is"), None);
        assert_eq!(names.in_own_words(b"statement \"pgweir_"), None);
    }

    #[test]
    fn names_parsed_behind_deallocate_all_stay() {
        let global = Global::default();
        let mut names = Names::default();
        names.change(b"a", Some(named(&global, "1")));
        names.confirm();
        names.change(b"b", Some(named(&global, "2")));
        names.forget_all();
        assert!(names.get(b"a").is_none() && names.get(b"b").is_some());
        names.undo();
        assert!(names.get(b"b").is_none());
    }

    #[test]
    fn changes_behind_the_next_sync_survive_an_error() {
        let global = Global::default();
        let mut names = Names::default();
        names.change(b"a", Some(named(&global, "1")));
        names.change(b"a", Some(named(&global, "2")));
        names.undo();
        assert_eq!(names.get(b"a").unwrap().statement.body.as_ref(), b"2\0\0\0");
        names.undo();
        assert!(names.get(b"a").is_none());
    }
}
