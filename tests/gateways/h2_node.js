// Node's own HTTP/2 client (nghttp2): requests at once, an upload as a stream, and a WebSocket (RFC 8441).
const http2 = require("node:http2");
const fs = require("node:fs");
const [port, host, ca] = process.argv.slice(2);
const client = http2.connect(`https://${host}:${port}`, {
  ca: fs.readFileSync(ca),
  lookup: (_name, options, done) => (options.all ? done(null, [{ address: "127.0.0.1", family: 4 }]) : done(null, "127.0.0.1", 4)),
});

function ask(headers, send) {
  return new Promise((done, fail) => {
    const stream = client.request(headers, { endStream: send === undefined });
    const parts = [];
    let status;
    stream.on("response", (head) => (status = head[":status"]));
    stream.on("data", (part) => parts.push(part));
    stream.on("end", () => done([status, Buffer.concat(parts)]));
    stream.on("error", fail);
    if (send) send(stream);
  });
}

function socket() {
  return new Promise((done, fail) => {
    const stream = client.request({ ":method": "CONNECT", ":protocol": "websocket", ":path": "/socket" }, { endStream: false });
    let came = "";
    stream.on("response", (head) => (head[":status"] === 200 ? stream.write("over node") : fail(head)));
    stream.on("data", (part) => {
      came += part;
      if (came.length === 9) stream.end();
    });
    stream.on("end", () => done(came));
    stream.on("error", fail);
  });
}

client.on("remoteSettings", async (settings) => {
  const many = await Promise.all([...Array(50)].map((_, n) => ask({ ":path": `/bytes/${256 * (n + 1)}` })));
  const body = Buffer.alloc(3_000_000, "u");
  const [, echoed] = await ask({ ":method": "POST", ":path": "/echo" }, (stream) => stream.end(body));
  console.log(JSON.stringify({
    connect: settings.enableConnectProtocol,
    sizes: many.map(([, got]) => got.length),
    echoed: echoed.equals(body),
    socket: await socket(),
  }));
  client.close();
});
