use proptest::prelude::*;

use super::*;

const ON: LexOptions = LexOptions {
    standard_conforming_strings: true,
    unsafe_encoding: false,
    in_doubt: false,
};
const OFF: LexOptions = LexOptions {
    standard_conforming_strings: false,
    unsafe_encoding: false,
    in_doubt: false,
};

fn tokens(text: &str, options: LexOptions) -> Vec<(TokenKind, &str)> {
    Lexer::new(text.as_bytes(), options)
        .filter(|token| !token.kind.is_trivia())
        .map(|token| (token.kind, &text[token.range()]))
        .collect()
}

fn spellings(text: &str) -> Vec<&str> {
    tokens(text, ON).into_iter().map(|(_, text)| text).collect()
}

/// The kind of a text that is one token.
fn kind(text: &str) -> TokenKind {
    let all = tokens(text, ON);
    assert_eq!(all.len(), 1, "{text}: {all:?}");
    all[0].0
}

#[test]
fn each_kind_of_constant_is_one_token() {
    for (text, expected) in [
        ("'a''b'", TokenKind::String),
        (r"'a\'", TokenKind::String),
        ("'a'  \n 'b'", TokenKind::String),
        ("'a' -- c\n -- d\n 'b'", TokenKind::String),
        (r"E'a\'b'", TokenKind::EscapeString),
        (r"e'a\\'", TokenKind::EscapeString),
        ("E'a'\n'b\\''", TokenKind::EscapeString),
        ("B'01'", TokenKind::BitString),
        ("x'1F'", TokenKind::HexString),
        ("N'a'", TokenKind::NationalString),
        (r"U&'\0061'", TokenKind::UnicodeString),
        ("u&\"a\"\"b\"", TokenKind::UnicodeIdent),
        ("\"a;'b\"\"\"", TokenKind::QuotedIdent),
        ("$$a'b;$$", TokenKind::DollarString),
        ("$a$ $$ $b$ $a$", TokenKind::DollarString),
        ("$é1$x$é1$", TokenKind::DollarString),
        ("$12", TokenKind::Param),
        ("a$b$", TokenKind::Ident),
        ("naïve", TokenKind::Ident),
        ("_x1", TokenKind::Ident),
    ] {
        assert_eq!(kind(text), expected, "{text}");
    }
}

#[test]
fn numbers_are_read_in_every_notation() {
    for text in [
        "1", "12.5", "1.", ".5", "1e10", "1.5E-3", "0x1F", "0o17", "0b101", "1_000", "0x_FF",
        "1_0.2_5",
    ] {
        assert_eq!(kind(text), TokenKind::Number, "{text}");
    }
    assert_eq!(spellings("1..10"), ["1", "..", "10"]);
    assert_eq!(spellings("1e"), ["1", "e"]);
    assert_eq!(spellings("0xg"), ["0", "xg"]);
    assert_eq!(spellings("1_"), ["1", "_"]);
    assert_eq!(spellings("t.1"), ["t", ".1"]);
}

#[test]
fn strings_continue_only_over_a_newline() {
    assert_eq!(spellings("'a' 'b'"), ["'a'", "'b'"]);
    assert_eq!(spellings("'a' /* \n */ 'b'"), ["'a'", "'b'"]);
    assert_eq!(spellings("'a' -- c"), ["'a'"]);
    assert_eq!(spellings("'a'\n- 'b'"), ["'a'", "-", "'b'"]);
}

#[test]
fn bit_strings_have_no_doubled_quotes() {
    assert_eq!(spellings("B'01''1'"), ["B'01'", "'1'"]);
}

#[test]
fn standard_conforming_strings_decides_about_backslashes() {
    let text = r"'a\' ; b'";
    assert_eq!(spellings(text), [r"'a\'", ";", "b'"]);
    assert_eq!(tokens(text, OFF), [(TokenKind::EscapeString, text)]);
    let national = r"N'a\'b'";
    assert_eq!(
        tokens(national, OFF),
        [(TokenKind::NationalString, national)]
    );
}

#[test]
fn operators_end_where_the_server_ends_them() {
    assert_eq!(spellings("a=-1"), ["a", "=", "-", "1"]);
    assert_eq!(spellings("a@-1"), ["a", "@-", "1"]);
    assert_eq!(spellings("a<->b"), ["a", "<->", "b"]);
    assert_eq!(spellings("a*-- c\nb"), ["a", "*", "b"]);
    assert_eq!(spellings("a*/* c */b"), ["a", "*", "b"]);
    assert_eq!(spellings("a->>'b'"), ["a", "->>", "'b'"]);
    assert_eq!(spellings("a=+-+1"), ["a", "=", "+", "-", "+", "1"]);
    assert_eq!(
        spellings("f(a=>1,b:=2)"),
        ["f", "(", "a", "=>", "1", ",", "b", ":=", "2", ")"]
    );
    assert_eq!(
        spellings("a::int[1:2]"),
        ["a", "::", "int", "[", "1", ":", "2", "]"]
    );
}

#[test]
fn comments_nest_and_hide_what_is_in_them() {
    assert_eq!(
        spellings("a /* b /* c */ ' */ d -- e ' /*\n f"),
        ["a", "d", "f"]
    );
    assert_eq!(spellings("a/*/**/*/b"), ["a", "b"]);
    assert_eq!(spellings("a /***/ b"), ["a", "b"]);
    assert_eq!(spellings("a --x\rb"), ["a", "b"]);
}

#[test]
fn what_is_not_terminated_is_an_error_to_the_end() {
    for text in [
        "'abc", "E'abc\\'", "\"abc", "$$abc", "$a$abc$$", "/* /* */", "U&'a", "B'0", "E'\\",
        "''\n'",
    ] {
        assert_eq!(kind(text), TokenKind::Error, "{text}");
    }
    assert_eq!(tokens("\"\"", ON)[0].0, TokenKind::Error);
    assert_eq!(tokens("$a b", ON)[0].0, TokenKind::Error);
    assert_eq!(tokens("\0", ON)[0].0, TokenKind::Error);
    assert_eq!(tokens("\\", ON)[0].0, TokenKind::Error);
}

#[test]
fn letters_before_a_quote_are_prefixes_only_alone() {
    assert_eq!(spellings("te'x'"), ["te", "'x'"]);
    assert_eq!(spellings("u & 'x'"), ["u", "&", "'x'"]);
    assert_eq!(spellings("u&x"), ["u", "&", "x"]);
}

#[test]
fn unsafe_encodings_doubt_only_what_is_not_ascii() {
    let options = LexOptions {
        unsafe_encoding: true,
        ..ON
    };
    assert!(!options.cannot_be_sure(b"select 1"));
    assert!(options.cannot_be_sure(b"select '\x95\x5c'"));
    assert!(!ON.cannot_be_sure(b"select '\x95\x5c'"));
    let options = LexOptions {
        in_doubt: true,
        ..ON
    };
    assert!(!options.cannot_be_sure(b"select 'a'"));
    assert!(options.cannot_be_sure(b"select '\x95'"));
    assert!(options.cannot_be_sure(br"select 'a\'"));
}

#[test]
fn a_megabyte_of_anything_ends() {
    for unit in [
        "/*", "(", "'", "$", "$a$", "E'\\", "\"", "-", "''\n", "1_", "--\n'", "'a'\n--", "u&",
    ] {
        let text = unit.repeat(1_000_000 / unit.len());
        let last = Lexer::new(text.as_bytes(), ON)
            .last()
            .map(|token| token.end);
        assert_eq!(last, Some(text.len()), "{unit}");
    }
}

fn tiles(text: &[u8], options: LexOptions) {
    let mut at = 0;
    let mut whole = Vec::new();
    for token in Lexer::new(text, options) {
        assert_eq!(token.start, at);
        assert!(token.end > token.start);
        at = token.end;
        whole.extend_from_slice(token.bytes(text));
    }
    assert_eq!(at, text.len());
    assert_eq!(whole, text);
}

proptest! {
    #[test]
    fn tokens_tile_any_bytes(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        tiles(&text, ON);
        tiles(&text, OFF);
    }

    #[test]
    fn tokens_tile_what_looks_like_sql(
        text in "(select|U&|E'|B'|'|\"|\\$|\\$a\\$|--|/\\*|\\*/|\n| |\\(|\\)|;|,|1|\\.|e|\\\\|:|=|-|\\+|é){0,40}"
    ) {
        tiles(text.as_bytes(), ON);
        tiles(text.as_bytes(), OFF);
    }

    /// Tokens joined by blanks are the same tokens, so nothing depends on the white space there was.
    #[test]
    fn significant_tokens_survive_other_white_space(
        words in proptest::collection::vec("[a-z]{1,5}|'[a-z ]*'|[0-9]{1,3}|[(),;]|<=|\\$[1-9]|\"[a-z]+\"", 0..20)
    ) {
        let text = words.join(" ");
        let found: Vec<_> = Lexer::new(text.as_bytes(), ON)
            .filter(|token| !token.kind.is_trivia())
            .map(|token| text[token.range()].to_owned())
            .collect();
        prop_assert_eq!(found, words);
    }
}
