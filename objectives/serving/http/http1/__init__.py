"""HTTP/1.1 on asyncio's transports: connections, parsed by llhttp, without a framework between socket and handler."""
