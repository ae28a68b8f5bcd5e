//! Takes passwords out of connection urls, so that none reaches state, logs, errors or answers.
//!
//! Understands both forms that PostgreSQL knows: `postgres://user:password@host/db?password=…` and
//! `host=… password=…`. What it cannot understand it treats as if it were all secret.

/// Splits a connection text into itself without a password, and the password.
///
/// The rest is kept byte for byte, so that it still means the same.
#[must_use]
pub fn split_password(url: &str) -> (String, Option<String>) {
    match url.split_once("://") {
        Some((scheme, rest)) => split_url(scheme, rest),
        None => split_pairs(url),
    }
}

fn split_url(scheme: &str, rest: &str) -> (String, Option<String>) {
    let (before_query, query) = match rest.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (rest, None),
    };
    let (authority, path) = match before_query.split_once('/') {
        Some((authority, path)) => (authority, Some(path)),
        None => (before_query, None),
    };
    let mut password = None;
    // The last `@`: a password that was not escaped may hold one itself.
    let authority = match authority.rsplit_once('@') {
        Some((user, hosts)) => match user.split_once(':') {
            Some((user, secret)) => {
                password = Some(percent_decode(secret));
                format!("{user}@{hosts}")
            }
            None => authority.to_owned(),
        },
        None => authority.to_owned(),
    };
    let mut url = format!("{scheme}://{authority}");
    if let Some(path) = path {
        url.push('/');
        url.push_str(path);
    }
    let mut kept = Vec::new();
    for pair in query.unwrap_or_default().split('&') {
        match pair.split_once('=') {
            Some((key, value)) if is_secret(key) => password = Some(percent_decode(value)),
            _ if pair.is_empty() => (),
            _ => kept.push(pair),
        }
    }
    if !kept.is_empty() {
        url.push('?');
        url.push_str(&kept.join("&"));
    }
    (url, password.filter(|password| !password.is_empty()))
}

fn split_pairs(text: &str) -> (String, Option<String>) {
    let mut kept = Vec::new();
    let mut password = None;
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, raw_length) = take_value(after.trim_start());
        let after = after.trim_start();
        let raw = after.get(..raw_length).unwrap_or(after);
        if is_secret(key.trim()) {
            password = Some(value);
        } else {
            kept.push(format!("{}={raw}", key.trim()));
        }
        rest = after.get(raw_length..).unwrap_or_default().trim_start();
    }
    if !rest.is_empty() {
        kept.push(rest.to_owned());
    }
    (
        kept.join(" "),
        password.filter(|password| !password.is_empty()),
    )
}

/// Reads one value of `key=value` form; returns it and the length of its written form.
fn take_value(text: &str) -> (String, usize) {
    let is_quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(is_quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if is_quoted => return (value, at + 1),
            space if space.is_whitespace() && !is_quoted => return (value, at),
            other => value.push(other),
        }
    }
    (value, text.len())
}

fn is_secret(key: &str) -> bool {
    key.eq_ignore_ascii_case("password") || key.eq_ignore_ascii_case("sslpassword")
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = after
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_taken_out_and_the_rest_kept() {
        for (text, rest, password) in [
            ("postgres://u@h/db", "postgres://u@h/db", None),
            (
                "postgres://u:pw@h:5432/db",
                "postgres://u@h:5432/db",
                Some("pw"),
            ),
            (
                "postgres://u:p%40w@h1,h2/db?sslmode=require",
                "postgres://u@h1,h2/db?sslmode=require",
                Some("p@w"),
            ),
            ("postgres://u:a@b@h/db", "postgres://u@h/db", Some("a@b")),
            (
                "postgres://h/db?user=u&password=pw&sslmode=disable",
                "postgres://h/db?user=u&sslmode=disable",
                Some("pw"),
            ),
            ("postgres://h/db?password=pw", "postgres://h/db", Some("pw")),
            (
                "host=h user=u password='p w\\'x' dbname=db",
                "host=h user=u dbname=db",
                Some("p w'x"),
            ),
            ("host=/tmp password=pw", "host=/tmp", Some("pw")),
        ] {
            assert_eq!(
                split_password(text),
                (rest.to_owned(), password.map(str::to_owned)),
                "{text}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_password_survives(password in "[a-zA-Z0-9]{8,20}", host in "[a-z]{1,5}") {
            for text in [
                format!("postgres://u:{password}@{host}/db"),
                format!("postgres://{host}/db?password={password}"),
                format!("host={host} password={password} user=u"),
                format!("host={host} password = '{password}'"),
            ] {
                let (rest, found) = split_password(&text);
                proptest::prop_assert!(!rest.contains(&password), "{}", rest);
                proptest::prop_assert_eq!(found, Some(password.clone()));
            }
        }
    }
}
