//! Compiles a pattern written for Go's `regexp`, the syntax that old consumers send.
//!
//! Both libraries descend from RE2 and agree on nearly everything. Where they differ, the pattern is
//! rewritten: Perl classes and word boundaries are ASCII in Go, `\Q…\E` quotes, and inside a class
//! `[`, `&&`, `--` and `~~` are plain characters.

use std::{iter::Peekable, str::Chars};

use regex::{Regex, RegexBuilder};

/// A longer pattern is refused; names of tables end at 63 bytes.
const PATTERN_BYTES_MAX: usize = 4_096;

/// A compiled pattern that needs more memory is refused.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// Compiles a pattern of Go's syntax.
///
/// # Errors
///
/// With the reason, when the pattern is malformed or too large.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("longer than {PATTERN_BYTES_MAX} bytes"));
    }
    RegexBuilder::new(&translate(pattern))
        .size_limit(COMPILED_BYTES_MAX)
        .build()
        .map_err(|error| reason(&error))
}

/// Keeps the line that says what is wrong; the others draw the pattern.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

fn translate(pattern: &str) -> String {
    let mut translated = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => escape(&mut chars, &mut translated),
            '[' => class(&mut chars, &mut translated),
            '{' => {
                // Go takes a brace that starts no repetition as itself.
                if is_repetition(&chars) {
                    translated.push('{');
                } else {
                    translated.push_str("\\{");
                }
            }
            plain => translated.push(plain),
        }
    }
    translated
}

fn escape(chars: &mut Peekable<Chars<'_>>, translated: &mut String) {
    match chars.next() {
        Some('Q') => quote(chars, translated),
        Some('d') => translated.push_str("[0-9]"),
        Some('D') => translated.push_str("[^0-9]"),
        Some('w') => translated.push_str("[0-9A-Za-z_]"),
        Some('W') => translated.push_str("[^0-9A-Za-z_]"),
        Some('s') => translated.push_str("[\\t\\n\\f\\r ]"),
        Some('S') => translated.push_str("[^\\t\\n\\f\\r ]"),
        Some('b') => translated.push_str("(?-u:\\b)"),
        // Of one's own: a bare `\B` without Unicode could split a character.
        Some('B') => translated.push_str("\\B"),
        Some(angle @ ('<' | '>')) => translated.push(angle),
        Some(other) => translated.extend(['\\', other]),
        None => translated.push('\\'),
    }
}

/// Copies what stands between `\Q` and `\E`, or the end, as plain text.
fn quote(chars: &mut Peekable<Chars<'_>>, translated: &mut String) {
    let mut literal = String::new();
    while let Some(c) = chars.next() {
        if c == '\\' && chars.peek() == Some(&'E') {
            chars.next();
            break;
        }
        literal.push(c);
    }
    translated.push_str(&regex::escape(&literal));
}

fn class(chars: &mut Peekable<Chars<'_>>, translated: &mut String) {
    translated.push('[');
    if chars.next_if_eq(&'^').is_some() {
        translated.push('^');
    }
    if chars.next_if_eq(&']').is_some() {
        translated.push_str("\\]");
    }
    let mut before = ' ';
    while let Some(c) = chars.next() {
        match c {
            ']' => {
                translated.push(']');
                return;
            }
            '\\' => escape(chars, translated),
            '[' if chars.peek() == Some(&':') => {
                translated.push('[');
                for inside in chars.by_ref() {
                    translated.push(inside);
                    if inside == ']' {
                        break;
                    }
                }
            }
            '[' | '&' | '~' => translated.extend(['\\', c]),
            '-' if before == '-' => translated.push_str("\\-"),
            plain => translated.push(plain),
        }
        before = c;
    }
}

/// Tells whether what follows a `{` completes `{n}`, `{n,}` or `{n,m}`.
fn is_repetition(chars: &Peekable<Chars<'_>>) -> bool {
    let inside: String = chars.clone().take_while(|c| *c != '}').collect();
    let is_closed = chars.clone().any(|c| c == '}');
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (least, most) = inside.split_once(',').unwrap_or((&inside, ""));
    is_closed && is_number(least) && (most.is_empty() || is_number(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_patterns_match_as_in_go() {
        for (pattern, name, expected) in [
            ("order", "customer_orders", true),
            ("^order", "customer_orders", false),
            ("^(orders|items)$", "items", true),
            ("(?i)ORDERS", "orders", true),
            ("(?P<n>a)b", "ab", true),
            (r"^\w+$", "größe", false),
            (r"^\w+$", "orders_2024", true),
            (r"\d{4}", "orders_2024", true),
            (r"^\d", "٣", false),
            (r"\Qa.b\E$", "a.b", true),
            (r"\Qa.b\E$", "axb", false),
            (r"\Qa.b", "a.b", true),
            ("[[]", "[", true),
            ("[a&&b]", "&", true),
            ("[+--]", ",", true),
            ("[]a]", "]", true),
            ("[^[:alpha:]]", "abc", false),
            ("[^[:alpha:]]", "ab1", true),
            (r"[\d-]+", "1-2", true),
            (r"\bred\b", "a red b", true),
            ("a{", "a{", true),
            ("a{,2}", "a{,2}", true),
            ("a{2}$", "aa", true),
            (r"\<b", "<b", true),
            (".", "é", true),
        ] {
            let regex = compile(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            assert_eq!(regex.is_match(name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn bad_patterns_say_why() {
        for pattern in ["(", "[a", "*a", "a**b)", r"\1", "(?<!a)b", r"\"] {
            let reason = compile(pattern).unwrap_err();
            assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
        }
        assert!(compile(&"a".repeat(5_000)).unwrap_err().contains("4096"));
        assert!(compile("(a{1000}){1000}").is_err());
    }
}
