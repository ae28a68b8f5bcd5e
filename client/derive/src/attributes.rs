//! Reads `#[pgcapture(…)]` of structs and fields.
//!
//! Every mistake is an error at the place where it is written.

use syn::{Attribute, Error, LitStr, Result, meta::ParseNestedMeta};

/// How column names follow from field names.
#[derive(Clone, Copy, Default)]
pub(crate) enum RenameAll {
    #[default]
    Keep,
    Lower,
    Upper,
    Snake,
    Camel,
    Pascal,
    ScreamingSnake,
    Kebab,
}

impl RenameAll {
    fn parse(text: &LitStr) -> Result<Self> {
        Ok(match text.value().as_str() {
            "lowercase" => Self::Lower,
            "UPPERCASE" => Self::Upper,
            "snake_case" => Self::Snake,
            "camelCase" => Self::Camel,
            "PascalCase" => Self::Pascal,
            "SCREAMING_SNAKE_CASE" => Self::ScreamingSnake,
            "kebab-case" => Self::Kebab,
            _ => {
                return Err(Error::new(
                    text.span(),
                    "unknown case; one of lowercase, UPPERCASE, snake_case, camelCase, \
                     PascalCase, SCREAMING_SNAKE_CASE, kebab-case",
                ));
            }
        })
    }

    /// The column of a field, whose name is in snake case.
    pub(crate) fn apply(self, field: &str) -> String {
        let capitalised = |word: &str| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_uppercase().chain(letters).collect())
                .unwrap_or_default()
        };
        match self {
            Self::Keep | Self::Snake => field.to_owned(),
            Self::Lower => field.to_lowercase(),
            Self::Upper | Self::ScreamingSnake => field.to_uppercase(),
            Self::Kebab => field.replace('_', "-"),
            Self::Pascal => field.split('_').map(capitalised).collect(),
            Self::Camel => {
                let mut words = field.split('_');
                let first = words.next().unwrap_or_default().to_owned();
                words
                    .map(capitalised)
                    .fold(first, |name, word: String| name + &word)
            }
        }
    }
}

/// What is written on the struct.
#[derive(Default)]
pub(crate) struct StructAttributes {
    pub(crate) table: Option<(String, String)>,
    pub(crate) rename_all: RenameAll,
}

impl StructAttributes {
    pub(crate) fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut read = Self::default();
        each(attributes, |meta| {
            if meta.path.is_ident("table") {
                read.table = Some(table(&meta.value()?.parse()?)?);
            } else if meta.path.is_ident("rename_all") {
                read.rename_all = RenameAll::parse(&meta.value()?.parse()?)?;
            } else {
                return Err(meta.error("unknown attribute; a struct takes table, rename_all"));
            }
            Ok(())
        })?;
        Ok(read)
    }
}

/// How a field is decoded.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Decoding {
    #[default]
    Sql,
    Json,
    Parse,
}

/// What is written on a field.
#[derive(Default)]
pub(crate) struct FieldAttributes {
    pub(crate) rename: Option<String>,
    pub(crate) decoding: Decoding,
    pub(crate) key: bool,
    pub(crate) default: bool,
    pub(crate) skip: bool,
}

impl FieldAttributes {
    pub(crate) fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut read = Self::default();
        each(attributes, |meta| {
            if meta.path.is_ident("rename") {
                let name: LitStr = meta.value()?.parse()?;
                if name.value().is_empty() {
                    return Err(Error::new(name.span(), "a column has a name"));
                }
                read.rename = Some(name.value());
            } else if meta.path.is_ident("json") || meta.path.is_ident("parse") {
                if read.decoding != Decoding::Sql {
                    return Err(meta.error("json and parse exclude each other"));
                }
                let is_json = meta.path.is_ident("json");
                read.decoding = if is_json {
                    Decoding::Json
                } else {
                    Decoding::Parse
                };
            } else if meta.path.is_ident("key") {
                read.key = true;
            } else if meta.path.is_ident("default") {
                read.default = true;
            } else if meta.path.is_ident("skip") {
                read.skip = true;
            } else {
                return Err(meta.error(
                    "unknown attribute; a field takes rename, key, json, parse, default, skip",
                ));
            }
            if read.skip && (read.key || read.rename.is_some() || read.decoding != Decoding::Sql) {
                return Err(meta.error("a skipped field is no column: nothing else applies"));
            }
            Ok(())
        })?;
        Ok(read)
    }
}

fn each(
    attributes: &[Attribute],
    mut read: impl FnMut(ParseNestedMeta<'_>) -> Result<()>,
) -> Result<()> {
    for attribute in attributes {
        if attribute.path().is_ident("pgcapture") {
            attribute.parse_nested_meta(&mut read)?;
        }
    }
    Ok(())
}

fn table(text: &LitStr) -> Result<(String, String)> {
    let value = text.value();
    let (schema, table) = value.split_once('.').unwrap_or(("public", &value));
    if schema.is_empty() || table.is_empty() || table.contains('.') {
        return Err(Error::new(
            text.span(),
            "a table is written \"schema.table\" or \"table\"",
        ));
    }
    Ok((schema.to_owned(), table.to_owned()))
}
