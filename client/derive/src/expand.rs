//! Writes the implementation of `Row`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{
    Data, DeriveInput, Error, Field, Fields, GenericArgument, Ident, PathArguments, Result, Type,
    ext::IdentExt, spanned::Spanned,
};

use crate::attributes::{Decoding, FieldAttributes, StructAttributes};

/// What may become of a column, as the type of the field says.
enum Shape<'a> {
    Required,
    Optional(&'a Type),
    MaybeUnchanged(&'a Type),
}

pub(crate) fn row(input: &DeriveInput) -> Result<TokenStream> {
    let attributes = StructAttributes::read(&input.attrs)?;
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(
            input.ident.span(),
            "Row can only be derived for a struct",
        ));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new(
            input.ident.span(),
            "Row needs named fields: each field is the column of its name",
        ));
    };
    let Some((schema, table)) = attributes.table else {
        return Err(Error::new(
            input.ident.span(),
            "say which table: #[pgcapture(table = \"public.orders\")]",
        ));
    };
    let mut keys = Vec::new();
    let mut decoded = Vec::new();
    let mut columns = Vec::new();
    for field in &fields.named {
        let own = FieldAttributes::read(&field.attrs)?;
        let Some(name) = &field.ident else { continue };
        let by_rule = || attributes.rename_all.apply(&name.unraw().to_string());
        let column = own.rename.clone().unwrap_or_else(by_rule);
        if !own.skip {
            if columns.contains(&column) {
                let text = format!("another field already reads the column {column}");
                return Err(Error::new(field.span(), text));
            }
            columns.push(column.clone());
        }
        if own.key {
            keys.push(column.clone());
        }
        decoded.push(field_value(field, name, &column, &own));
    }
    let name = &input.ident;
    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics ::pgcapture::Row for #name #type_generics #where_clause {
            const SCHEMA: &'static str = #schema;
            const TABLE: &'static str = #table;
            const KEY: &'static [&'static str] = &[#(#keys),*];

            fn decode(
                columns: &mut ::pgcapture::Columns<'_>,
            ) -> ::core::result::Result<Self, ::pgcapture::DecodeError> {
                ::core::result::Result::Ok(Self { #(#decoded),* })
            }
        }
    })
}

fn field_value(field: &Field, name: &Ident, column: &str, own: &FieldAttributes) -> TokenStream {
    let written = &field.ty;
    if own.skip {
        return quote_spanned! {written.span()=>
            #name: <#written as ::core::default::Default>::default()
        };
    }
    let function = match own.decoding {
        Decoding::Sql => quote!(sql),
        Decoding::Json => quote!(json),
        Decoding::Parse => quote!(parse),
    };
    let (method, inner) = match shape(written) {
        // Missing and NULL are both none.
        Shape::Optional(inner) if own.default => {
            let method = quote_spanned!(written.span()=> field);
            let decode = quote_spanned!(inner.span()=> ::pgcapture::decode::#function::<#inner>);
            return quote!(#name: columns.#method::<#inner>(#column, #decode)?.value());
        }
        Shape::Optional(inner) => ("optional", inner),
        Shape::MaybeUnchanged(inner) => ("field", inner),
        Shape::Required if own.default => ("or_default", written),
        Shape::Required => ("required", written),
    };
    let method = Ident::new(method, written.span());
    let decode = quote_spanned!(inner.span()=> ::pgcapture::decode::#function::<#inner>);
    quote!(#name: columns.#method::<#inner>(#column, #decode)?)
}

/// Looks at the last part of the type's path, as it is written.
fn shape(written: &Type) -> Shape<'_> {
    let Type::Path(path) = written else {
        return Shape::Required;
    };
    let Some(last) = path.path.segments.last() else {
        return Shape::Required;
    };
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return Shape::Required;
    };
    match (last.ident.to_string().as_str(), arguments.args.first()) {
        ("Option", Some(GenericArgument::Type(inner))) => Shape::Optional(inner),
        ("Field", Some(GenericArgument::Type(inner))) => Shape::MaybeUnchanged(inner),
        _ => Shape::Required,
    }
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    fn mistake(input: DeriveInput) -> String {
        row(&input).unwrap_err().to_string()
    }

    #[test]
    fn a_struct_without_table_is_told_how_to_name_it() {
        let text = mistake(parse_quote! { struct Order { id: i64 } });
        assert_eq!(
            text,
            "say which table: #[pgcapture(table = \"public.orders\")]"
        );
    }

    #[test]
    fn only_structs_with_named_fields_are_rows() {
        let text = mistake(parse_quote! { enum Order { A } });
        assert_eq!(text, "Row can only be derived for a struct");
        let text = mistake(parse_quote! { #[pgcapture(table = "o")] struct Order(i64); });
        assert_eq!(
            text,
            "Row needs named fields: each field is the column of its name"
        );
    }

    #[test]
    fn unknown_attributes_are_answered_with_the_known_ones() {
        let text = mistake(parse_quote! {
            #[pgcapture(table = "o")]
            struct Order { #[pgcapture(jsn)] id: i64 }
        });
        assert!(
            text.ends_with("a field takes rename, key, json, parse, default, skip"),
            "{text}"
        );
        let text = mistake(parse_quote! { #[pgcapture(tabel = "o")] struct Order { id: i64 } });
        assert!(text.ends_with("a struct takes table, rename_all"), "{text}");
    }

    #[test]
    fn contradictions_and_bad_names_are_refused() {
        let text = mistake(parse_quote! { #[pgcapture(table = "a.b.c")] struct Order { id: i64 } });
        assert!(text.starts_with("a table is written"), "{text}");
        let text = mistake(parse_quote! {
            #[pgcapture(table = "o", rename_all = "Snake")] struct Order { id: i64 }
        });
        assert!(text.starts_with("unknown case"), "{text}");
        let text = mistake(parse_quote! {
            #[pgcapture(table = "o")] struct Order { #[pgcapture(skip, json)] id: i64 }
        });
        assert!(text.contains("a skipped field is no column"), "{text}");
        let text = mistake(parse_quote! {
            #[pgcapture(table = "o")]
            struct Order { id: i64, #[pgcapture(rename = "id")] other: i64 }
        });
        assert_eq!(text, "another field already reads the column id");
    }

    #[test]
    fn column_names_follow_the_rule_and_raw_identifiers_lose_their_mark() {
        let input = parse_quote! {
            #[pgcapture(table = "o", rename_all = "camelCase")]
            struct Order { r#type: i64, unit_price: i64 }
        };
        let code = row(&input).unwrap().to_string();
        assert!(
            code.contains("\"type\"") && code.contains("\"unitPrice\""),
            "{code}"
        );
    }
}
