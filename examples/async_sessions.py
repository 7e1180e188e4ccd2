"""Five sessions at once, each with its own work; the first to be ready is the first to be told."""

import asyncio

from moorage import aio


async def work(client: aio.Client, number: int) -> str:
    async with client.sessions.create(image="python", cpu=0.5, mem="256m") as session:
        result = await session.run_code(f"sum(i * i for i in range({number} * 1000))")
        return f"{session.name}: {result.text}"


async def main() -> None:
    async with aio.Client() as client:
        for finished in asyncio.as_completed([work(client, number) for number in range(1, 6)]):
            print(await finished)


if __name__ == "__main__":
    asyncio.run(main())
