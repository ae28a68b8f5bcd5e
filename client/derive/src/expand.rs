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
