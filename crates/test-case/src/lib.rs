//! `#[case]` registers an integration test with `larder_testing::runner`.

#![forbid(unsafe_code)]

use proc_macro::{TokenStream, TokenTree};

/// Registers a function without arguments as a test. `#[case(hidden)]` leaves it out of the list: only
/// another test runs it, as a process of its own.
///
/// The standard `#[test]` cannot report at run time that a test lacks a tool; the runner can.
#[proc_macro_attribute]
pub fn case(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let is_hidden = arguments.to_string() == "hidden";
    let mut tokens = item.clone().into_iter();
    let is_fn = |token: &TokenTree| matches!(token, TokenTree::Ident(word) if word.to_string() == "fn");
    let name = tokens.find(is_fn).and_then(|_| tokens.next());
    let Some(TokenTree::Ident(name)) = name else {
        return "compile_error!(\"#[case] registers a function\");".parse().unwrap_or_default();
    };
    let registration = format!(
        "::larder_testing::runner::inventory::submit! {{
            ::larder_testing::runner::Case {{ module: module_path!(), name: \"{name}\", is_hidden: {is_hidden}, run: {name} }}
        }}"
    );
    let mut output: TokenStream = registration.parse().unwrap_or_default();
    output.extend(item);
    output
}
