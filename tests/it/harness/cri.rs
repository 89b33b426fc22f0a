//! The one call of Kubernetes' container runtime interface that pulls an image (its published proto, runtime.v1).

use std::path::Path;

use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use larder::node::grpc;

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

/// Pulls an image as a kubelet has it pulled.
pub(crate) fn pull(socket: &Path, image: &str) -> Result<(), Status> {
    let request = PullImageRequest { image: Some(ImageSpec { image: image.to_owned() }) };
    let mut client = Grpc::with_origin(grpc::channel(socket.to_owned()), grpc::origin());
    let call = async {
        client.ready().await.map_err(|e| Status::unknown(e.to_string()))?;
        let codec = ProstCodec::<PullImageRequest, PullImageResponse>::default();
        let path = PathAndQuery::from_static("/runtime.v1.ImageService/PullImage");
        client.unary(Request::new(request), path, codec).await
    };
    Runtime::new().unwrap().block_on(call).map(drop)
}
